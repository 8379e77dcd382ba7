# SPDX-License-Identifier: BSD-3-Clause
"""The example language model: equal to the same model on PyTorch's attention, exact second derivatives, resumable."""

import dataclasses
import importlib
import importlib.util
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from language_model import corpus as corpus_module
from language_model.corpus import is_held_out, read_standard_library
from language_model.model import LanguageModel, ModelSettings

ROOT = Path(__file__).resolve().parents[1]
TINY = ModelSettings(width=8, depth=1, heads=2, context=16)
TINY_RUN = [
    "--steps=6",
    "--batch=2",
    "--context=16",
    "--width=8",
    "--depth=1",
    "--heads=2",
    "--hessian-products=2",
    "--newton-steps=0",
    "--sample-bytes=8",
]


@pytest.fixture(scope="module")
def corpus():
    return read_standard_library()


@pytest.fixture
def training(monkeypatch):
    """The module of the trainer. Its steps need no tqdm, only the progress bar does."""
    if importlib.util.find_spec("tqdm") is None:
        monkeypatch.setitem(sys.modules, "tqdm", types.SimpleNamespace(tqdm=None))
    return importlib.import_module("language_model.training")


@pytest.fixture
def program():
    """The whole program, which shows progress and draws."""
    for name in ("matplotlib", "tqdm"):
        pytest.importorskip(name, reason=f"the example needs {name}: pip install torch_rescaled[examples]")
    return importlib.import_module("train_language_model")


def test_default_model_has_about_a_million_parameters():
    assert 0.8e6 < sum(p.numel() for p in LanguageModel(ModelSettings()).parameters()) < 1.2e6


def test_first_steps_equal_those_on_torch_attention(corpus, training, tmp_path):
    settings = training.TrainingSettings(batch=2)
    losses = {}
    for attention in ("fused", "sdpa"):
        trainer = training.Trainer(ModelSettings(attention=attention), settings, tmp_path / "unused.pt")
        losses[attention] = []
        for _ in range(20):
            losses[attention].append(trainer.step(trainer.batch(corpus)))
            trainer.history.train.append(losses[attention][-1])
    assert losses["fused"][0] > losses["fused"][-1] + 0.5, "nothing was learned: the comparison would show nothing"
    torch.testing.assert_close(torch.tensor(losses["fused"]), torch.tensor(losses["sdpa"]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["cosh", "signed"])
def test_other_kinds_differ_from_exp(corpus, kind):
    batch = corpus.batch(2, 16, seed=0)
    losses = []
    for settings in (TINY, dataclasses.replace(TINY, kind=kind)):
        torch.manual_seed(0)
        losses.append(LanguageModel(settings).loss(batch).item())
    assert losses[0] != losses[1]


def test_largest_eigenvalue_is_that_of_the_dense_hessian(corpus, program):
    largest_eigenvalue = program.largest_eigenvalue
    torch.manual_seed(0)
    tiny = dataclasses.replace(TINY, width=4)
    fused, sdpa = LanguageModel(tiny).double(), LanguageModel(dataclasses.replace(tiny, attention="sdpa")).double()
    sdpa.load_state_dict(fused.state_dict())
    windows = corpus.batch(4, 16, seed=0)
    parameters = list(sdpa.parameters())
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        grads = torch.autograd.grad(sdpa.loss(windows), parameters, create_graph=True)
        flat = torch.cat([grad.flatten() for grad in grads])
        rows = [torch.autograd.grad(entry, parameters, retain_graph=True) for entry in flat]
    hessian = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    eigenvalues = torch.linalg.eigvalsh(hessian)
    largest = eigenvalues[eigenvalues.abs().argmax()].item()
    found = largest_eigenvalue(fused, windows, products=300, seed=0)
    assert found.residual <= 0.02
    # An eigenvalue lies within the residual, and by the Rayleigh quotient far nearer.
    assert found.value == pytest.approx(largest, rel=1e-2)
    assert largest_eigenvalue(sdpa, windows, products=5, seed=0).value == pytest.approx(
        largest_eigenvalue(fused, windows, products=5, seed=0).value, rel=1e-9
    )


def test_corpus_is_split_by_file(corpus):
    assert corpus.train_files > 5 * corpus.held_out_files > 0
    sides = {is_held_out(name) for name in ("argparse.py", "json/encoder.py", *(f"module{i}.py" for i in range(50)))}
    assert sides == {True, False}
    held_out, train = bytes(corpus.held_out.tolist()), bytes(corpus.train.tolist())
    files = [text for text in held_out.split(corpus_module.END_OF_FILE) if len(text) > 1000]
    assert files and not any(text in train for text in files)
    torch.testing.assert_close(corpus.batch(3, 16, seed=1), corpus.batch(3, 16, seed=1))
    assert not torch.equal(corpus.batch(3, 16, seed=1), corpus.batch(3, 16, seed=2))
    assert corpus.held_out_windows(5, 16).shape == (5, 17)


def histories(output: Path) -> dict[str, object]:
    found = {}
    for path in sorted(output.glob("*.pt")):
        history = torch.load(path, weights_only=True)["history"]
        found[path.stem] = (history["train"], history["held_out"])
    return found


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "newton"])
def test_interrupted_run_continues_as_if_it_had_not_stopped(program, tmp_path, monkeypatch, capsys, optimizer):
    whole, parts, run = tmp_path / "whole", tmp_path / "parts", [*TINY_RUN, f"--optimizer={optimizer}"]
    assert program.main([*run, "--output", str(whole)]) == 0
    out = capsys.readouterr().out
    assert "bits per byte" in out and "cosh writes" in out and str(whole / "language_model.png") in out
    assert (whole / "language_model.png").read_bytes().startswith(b"\x89PNG")

    step, calls = program.Trainer.step, []

    def interrupted(self, windows):
        calls.append(1)
        if len(calls) == 10:  # in the middle of the second kind
            raise KeyboardInterrupt
        return step(self, windows)

    monkeypatch.setattr(program.Trainer, "step", interrupted)
    assert program.main([*run, "--output", str(parts)]) == 130
    assert "--resume" in capsys.readouterr().out
    assert histories(whole) != histories(parts)
    assert program.main([*run, "--output", str(parts), "--resume"]) == 0
    assert len(calls) == 10 + 3
    assert histories(whole) == histories(parts)


def test_checkpoint_of_other_settings_is_refused(program, tmp_path, capsys):
    arguments = [*TINY_RUN, "--kind", "exp", "--output", str(tmp_path)]
    assert program.main(arguments) == 0
    assert program.main([*arguments, "--resume", "--learning-rate", "0.5"]) == 2
    assert "was made with learning_rate 0.003 (now 0.5)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attention", "sdpa"], "--attention sdpa has only the kind exp"),
        (["--width", "20"], "--width must be a multiple of twice --heads"),
        (["--steps", "0"], "expected a positive number, got 0"),
        (["--kind", "relu"], "invalid choice: 'relu'"),
    ],
)
def test_bad_arguments(program, arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        program.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["exp", "signed"])
def test_a_layer_is_distilled(kind, tmp_path, capsys):
    distil_layer = pytest.importorskip("distil_layer", reason="needs matplotlib and tqdm")
    small = ["--teacher-steps=1", "--steps=2", "--batch=1", f"--kind={kind}", f"--output={tmp_path}"]
    assert distil_layer.main(small) == 0
    printed = capsys.readouterr().out
    assert all(variant in printed for variant in distil_layer.VARIANTS) and "nan" not in printed
    assert (tmp_path / "distil_layer.png").read_bytes().startswith(b"\x89PNG")


def run_example(name, *arguments, launcher=()):
    command = [sys.executable, *launcher, str(ROOT / "examples" / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux counts it")
def test_a_regression_over_processes_needs_no_memory_for_its_rows(tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    small = ("--megabytes", 60, "--folder", tmp_path)
    out = run_example("regression_distributed.py", *small, launcher=launcher)
    assert "in parts of 30 MB, beside each 15 MB of memory" in out
    assert len(re.findall(r"^(2 processes|1 process): (?:GRADIENT|LOSS|STEP), ", out, re.M)) == 2
    assert "bit for bit: True" in out and float(out.split("x differs by ")[1]) <= 1e-12
    assert list(tmp_path.iterdir()) == []


def test_regression_agrees_with_statsmodels(tmp_path):
    pytest.importorskip("statsmodels")
    pytest.importorskip("sklearn")
    out = run_example("regression.py", "--picture", tmp_path / "r.png")
    differences = dict(re.findall(r"  ([\w ]+): \S+ s, coefficients differ by at most (\S+)", out))
    assert float(differences["statsmodels GLM"]) <= 1e-8 and float(differences["scipy least_squares"]) <= 1e-7
    assert "converged" in out and (tmp_path / "r.png").stat().st_size > 10_000


def test_in_context_learning_identities_and_bounds(tmp_path):
    out = run_example("in_context_learning.py", "--samples", 300, "--steps", 12, "--picture", tmp_path / "i.png")
    assert all(float(error) <= 1e-14 for error in re.findall(r"identities hold to (\S+);", out))
    assert all(int(share) <= 100 for share in re.findall(r"reach (\d+)% of their bound", out))
    low, high = map(float, re.search(r"eigenvalues from (\S+) to (\S+),", out).groups())
    assert low >= -0.2404 and high <= 0.3081
    assert (tmp_path / "i.png").stat().st_size > 10_000


def test_a_flow_draws_digits(tmp_path):
    pytest.importorskip("sklearn")
    small = ("--steps", 3, "--batch", 8, "--width", 16, "--depth", 1, "--heads", 2, "--output", tmp_path)
    rows = re.findall(r"^(fused|torch)\s+\S+\s+\S+\s+(\S+)", run_example("meanflow.py", *small), re.MULTILINE)
    assert [name for name, _ in rows] == ["fused", "torch"]
    assert float(rows[0][1]) == pytest.approx(float(rows[1][1]), abs=1e-3)  # the same training on PyTorch's attention
    assert (tmp_path / "meanflow.png").stat().st_size > 5_000


def test_forces_are_learned_through_double_backward(tmp_path):
    small = ("--clusters", 8, "--steps", 3, "--batch", 4, "--width", 8, "--heads", 2, "--output", tmp_path)
    out = run_example("energy_forces.py", *small)
    errors = dict(re.findall(r"^energies and forces\s+(fused|torch)\s+\S+\s+(\S+\s+\S+)", out, re.MULTILINE))
    fused, torch_ = ([float(x) for x in errors[name].split()] for name in ("fused", "torch"))
    assert fused == pytest.approx(torch_, abs=2e-3)
    assert (tmp_path / "energy_forces.png").stat().st_size > 5_000


def test_forces_of_the_potential_are_its_gradient_and_turn_with_the_cluster():
    energy_forces = pytest.importorskip("energy_forces", reason="needs matplotlib and tqdm")
    model = energy_forces.Potential(8, 2, 2, "fused").double()
    x = torch.randn(2, energy_forces.ATOMS, 3, dtype=torch.float64)
    q = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]

    def forces(x):
        x = x.clone().requires_grad_()
        energy = model(x)
        return energy.detach(), energy_forces.forces_of(energy, x)

    (energy, force), (turned_energy, turned) = forces(x), forces(x[:, torch.randperm(energy_forces.ATOMS)] @ q)
    torch.testing.assert_close(turned_energy, energy)
    torch.testing.assert_close(turned.norm(dim=-1).sort().values, force.norm(dim=-1).sort().values)
    assert torch.autograd.gradcheck(model, x[:1].requires_grad_(), atol=1e-5)


def test_newton_phase_lowers_the_held_out_loss_and_says_what_adamw_needs(corpus, program):
    phase = program.newton_phase(corpus, "exp", 2, seed=0)
    assert len(phase.losses) == 3 and phase.losses[2] < phase.losses[1] < phase.losses[0]
    assert phase.adamw_steps is not None and phase.adamw_steps > 2
    text = program.describe(phase)
    assert "Newton: 2 steps on 4096 bytes" in text and f"AdamW gets there in {phase.adamw_steps} steps" in text


def test_a_real_head_is_distilled(tmp_path):
    out = run_example("distil_attention_head.py", "--quick", "--picture", tmp_path / "d.png")
    if "not installed" in out:
        pytest.skip(out.strip())
    errors = {(name, kind, int(rank)): float(e) for name, kind, rank, e in re.findall(r"^(\w+) +(\w+) +(\d+) +(\S+) ", out, re.M)}
    assert errors["map", "exp", 4] < errors["scores", "exp", 4] and errors["outputs", "exp", 32] < 1e-4
    assert errors["outputs", "cosh", 32] < errors["outputs", "cosh", 4]
    assert (tmp_path / "d.png").stat().st_size > 10_000


def test_the_sentence_encoder_is_bert():
    sentence_encoder = importlib.import_module("sentence_encoder")
    transformers = pytest.importorskip("transformers")
    folder = sentence_encoder.model_folder()
    if folder is None:
        pytest.skip(sentence_encoder.MISSING)
    encoder, texts = sentence_encoder.Encoder(folder), sentence_encoder.sentences()
    ids, mask = encoder.tokens(texts)
    theirs = transformers.AutoTokenizer.from_pretrained(str(folder))(texts, padding=True, return_tensors="pt")
    assert torch.equal(theirs.input_ids, ids) and torch.equal(theirs.attention_mask.bool(), mask)
    model = transformers.BertModel.from_pretrained(str(folder), attn_implementation="eager").eval()
    with torch.no_grad():
        wanted = model(**theirs, output_attentions=True)
    torch.testing.assert_close(encoder.hidden(texts, encoder.layers)[0][mask], wanted.last_hidden_state[mask], atol=1e-4, rtol=0)
    maps = encoder.head(texts, 2, 3).map
    torch.testing.assert_close(maps.float()[mask], wanted.attentions[2][:, 3][mask], atol=1e-5, rtol=0)


def test_without_the_weights_an_example_says_so(monkeypatch, capsys):
    distil = importlib.import_module("distil_attention_head")
    monkeypatch.setattr(distil, "model_folder", lambda: None)
    assert distil.main([]) == 0 and "pip install" in capsys.readouterr().out


def test_a_cache_is_compacted(tmp_path):
    pytest.importorskip("scipy")
    out = run_example("compact_kv_cache.py", "--quick", "--evaluations", 30, "--picture", tmp_path / "k.png")
    rows = re.findall(r"^(in steps|jointly) +(\d+) +(\S+) +(\S+) +(\S+)", out, re.M)
    errors = {(name, int(keys)): (float(seen), float(normalizer)) for name, keys, _, seen, normalizer in rows}
    assert len(errors) == 4
    for keys in (4, 8):
        assert all(joint < steps for joint, steps in zip(errors["jointly", keys], errors["in steps", keys], strict=True))
    assert (tmp_path / "k.png").stat().st_size > 5_000


def test_rates_after_ngrams_are_better_than_a_table(tmp_path):
    pytest.importorskip("scipy")
    pytest.importorskip("matplotlib")
    out = run_example("ngram_rates.py", "--rows", 20_000, "--plot", tmp_path / "n.png")
    mean, table, fit, own = (float(share) for share in re.findall(r"(\S+)% of the variance explained", out))
    assert abs(mean) < 1 and 10 < table < fit < own
    assert len(re.findall(r"iterations, \d+ reads of A, LOSS by cg", out)) == 2
    assert len(re.findall(r"^  .+ (?:just now|lately) +x \d", out, re.M)) == 16
    assert (tmp_path / "n.png").stat().st_size > 5_000


def test_ngrams_and_what_is_left_of_a_line():
    pytest.importorskip("scipy")
    numpy, example = pytest.importorskip("numpy"), importlib.import_module("ngram_rates")
    data = b"for i in range(9):\n    abababab\n"
    text, places = numpy.frombuffer(data, numpy.uint8), numpy.array([10, 18, 30])
    assert example.left_of_line(text, places).tolist() == [7, 12, 0]
    grams = example.ngrams(text, places)
    wanted = [repr(data[p - lag - n + 1 : p - lag + 1].decode()) for p in places for n in range(1, 5) for lag in range(9 - n)]
    assert [example.spelled(int(gram)).rpartition("' ")[0] + "'" for gram in grams.flat] == wanted
    features = example.Features.most_frequent(grams, 1000)
    A = features.matrix(grams)
    counts = dict(zip(map(example.spelled, map(int, features.vocabulary)), A.toarray()[2, 1:], strict=True))
    assert (counts["'b' just now"], counts["'b' lately"], counts["'ab' lately"], counts["'abab' just now"]) == (1, 3, 3, 1)
    assert A.toarray().sum(1).tolist() == [27, 27, 27]
