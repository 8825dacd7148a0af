"""Grid files: what they expand to, and what they refuse before anything starts."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medshift.cli import main
from medshift.errors import DataError, ParameterError
from medshift.repro import comparison
from medshift.repro.cells import notebook_folder
from medshift.repro.comparison import recipe_of, training_plan
from medshift.repro.experiments import Comparison, Translation
from medshift.repro.grid import Block, grid_file, load_grid
from medshift.repro.grid_table import collect, failure_file, keep_failure
from medshift.repro.pipeline import plans
from medshift.repro.profiles import load_profile
from medshift.repro.stage import Plan, write_json

SHIPPED = sorted((notebook_folder() / "grids").glob("*.yaml"))
HEAD = "title: A test\nexperiment: translation\n"
SEARCH = "title: A test\nexperiment: comparison\n"


@pytest.fixture
def smoke():
    return load_profile("smoke")


def written(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


def work(grid, index: int) -> Plan:
    found = grid.runs[index].work
    assert isinstance(found, Plan)
    return found


def test_what_the_companion_promises_is_shipped():
    wanted = {"guidance", "sizes", "solvers", "sigma_min", "null_encode", "guidance_legs", "pixel_latent", "time_law",
              "label_dropout", "comparison_search", "comparison_search_full", "echo"}  # fmt: skip
    assert {path.stem for path in SHIPPED} == wanted


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_grid_expands_under_every_profile_of_rendered_heads(path: Path, monkeypatch):
    monkeypatch.setattr("medshift.data.ct.fetch", lambda cache=None: Path("here"))
    monkeypatch.delenv("MEDSHIFT_CT", raising=False)
    for name in ("smoke", "cpu", "gpu"):
        grid = load_grid(str(path), load_profile(name))
        assert len(grid.runs) == grid.file.count() == len({run.name for run in grid.runs})


names = st.sampled_from(["tau", "steps", "guidance", "solver", "grid"])
lists = st.lists(st.integers(), min_size=1, max_size=4)


@given(st.dictionaries(names, lists, max_size=3), st.integers(1, 3), st.booleans())
def test_a_block_holds_the_product_times_the_zipped_positions(product, length, zipped):
    together = {"source": list(range(length)), "target": list(range(length))} if zipped else {}
    block = Block(product=product, zip=together)
    rows = list(block.combinations())
    assert len(rows) == block.count() == math.prod(map(len, product.values())) * (length if zipped else 1)
    assert all(set(row) == set(product) | set(together) for row in rows)
    assert all(row["source"] == row["target"] for row in rows if zipped)


def test_seeds_multiply_and_reach_data_training_and_label(tmp_path, smoke):
    grid = load_grid(written(tmp_path, HEAD + "blocks: [{product: {tau: [0.1, 0.2]}}]\nseeds: [0, 7]\n"), smoke)
    assert [(run.values["tau"], run.values["seed"]) for run in grid.runs] == [(0.1, 0), (0.1, 7), (0.2, 0), (0.2, 7)]
    assert work(grid, 0).inputs["network"].key == work(grid, 2).inputs["network"].key
    assert work(grid, 0).inputs["network"].key != work(grid, 1).inputs["network"].key


def test_a_run_that_changes_nothing_of_the_training_uses_the_profiles_network(tmp_path, smoke):
    text = HEAD + "blocks: [{product: {width: [1.0, 0.5]}}]\nfixed: {codec: patch, codec_factor: 2}\n"
    grid = load_grid(written(tmp_path, text), smoke)
    profiles_own = plans(smoke)["network"].key
    assert [work(grid, i).inputs["network"].key == profiles_own for i in range(2)] == [True, False]


def test_a_searched_training_is_that_of_the_comparison_but_for_what_is_searched(smoke):
    base = plans(smoke)
    run = Comparison(training="bridge-ot", learning_rate=0.01, images=48, knobs={"steps": 2}, views=4)
    plan = run.plan(smoke, base, 0)
    compared = plan.inputs["compared"]
    live, searched = training_plan(smoke, base, "bridge-ot", seed=0), compared.inputs["trained"]
    differs = {"config": {"coupling": "ot", "learning_rate": 0.01}, "images": 48}
    assert searched.arguments == {**live.arguments, **differs}
    assert {name: p.key for name, p in searched.inputs.items()} == {name: p.key for name, p in live.inputs.items()}
    # Nothing but validation views is translated, under the knobs asked for.
    assert plan.arguments["role"] == compared.arguments["headline"] == "validation"
    assert compared.arguments["roles"] == {"validation": 4} and compared.arguments["knobs"] == {"steps": 2}
    # Adapters are searched on the network that the comparison has.
    turbo = Comparison(training="cyclegan-turbo", learning_rate=0.01).plan(smoke, base, 0).inputs["compared"]
    assert turbo.inputs["base"].key == turbo.inputs["trained"].inputs["base"].key
    assert turbo.inputs["base"].key == training_plan(smoke, base, "same-budget", seed=0).key
    with pytest.raises(ParameterError, match="truth of rendered heads"):
        run.plan(smoke.model_copy(update={"source": "folders"}), base, 0)


def test_a_rate_that_is_the_comparisons_comes_from_its_shipped_weights(monkeypatch, smoke):
    base = plans(smoke)
    card = {"recipe": recipe_of(training_plan(smoke, base, "cut", seed=0)), "sha256": "0" * 64}
    monkeypatch.setattr(comparison, "read_card", lambda profile, name: card if name == "cut" else None)
    for rate, images, module in ((0, 0, "shipped"), (0.001, 0, "trained"), (0, 48, "trained")):
        run = Comparison(training="cut", learning_rate=rate, images=images)
        trained = run.plan(smoke, base, 0).inputs["compared"].inputs["trained"]
        assert trained.name == module
        assert module == "shipped" or trained.arguments["config"] == ({"learning_rate": rate} if rate else {})


@pytest.mark.slow
def test_a_search_runs_to_its_table(tmp_path, smoke):
    assert main(["grid", "comparison_search", "--profile", "smoke", "--out", str(tmp_path)]) == 0
    table = load_grid("comparison_search", smoke, out_dir=str(tmp_path)).load()
    assert table["state"].tolist() == ["done", "done"] and table["learning_rate"].tolist() == [0.0003, 0.001]
    assert table["images_seen"].tolist() == [32, 32] and table["n"].tolist() == [4, 4]
    assert table["psnr_clean"].between(0, 60).all() and table["psnr_clean"].nunique() == 2
    assert {path.name.rpartition("-")[0] for path in (tmp_path / "runs" / "smoke").glob("*-*[0-9a-f]")} >= {
        "trained", "compared", "searched"
    }  # fmt: skip


def test_runs_that_are_the_same_are_refused(tmp_path, smoke):
    with pytest.raises(ParameterError, match="runs 0 and 1 are the same"):
        load_grid(written(tmp_path, HEAD + "blocks: [{product: {tau: [0.1, 0.1]}}]"), smoke)


def test_guidance_of_a_leg_and_the_null_label_reach_the_sampler(smoke):
    base = plans(smoke)
    scales = [
        Translation(**values).plan(smoke, base, 0).arguments["guidance"]
        for values in ({"guidance": 2.0}, {"guidance": 2.0, "guidance_encode": 0.0}, {"guidance_decode": 3.0})
    ]
    assert scales == [[2.0, 2.0], [0.0, 2.0], [1.0, 3.0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("- tau", "is a list"),
        ("title:\tx", "tab"),
        (HEAD, "blocks"),
        (HEAD + "blocks: []", "blocks"),
        (HEAD + "blocks: [{product: {tua: [0.1]}}]", "did you mean 'tau'"),
        (HEAD + "blocks: [{product: {tau: [1.2]}}]", "tau"),
        (HEAD + "blocks: [{product: {tau: ['half']}}]", "tau"),
        (HEAD + "blocks: [{product: {solver: [hune]}}]", "solver"),
        (HEAD + "blocks: [{product: {tau: []}}]", "empty"),
        (HEAD + "blocks: [{product: {training: [cut]}}]", "a translation has no 'training'"),
        (SEARCH + "blocks: [{product: {learning_rat: [0.1]}}]", "did you mean 'learning_rate'"),
        (
            SEARCH + "blocks: [{product: {training: [cot], learning_rate: [0.1]}}]",
            "no training is called 'cot'",
        ),
        (SEARCH + "blocks: [{product: {training: [cut]}}]", "learning_rate"),
        (SEARCH + "blocks: [{product: {training: [cut], learning_rate: [-1]}}]", "learning_rate"),
        (SEARCH + "blocks: [{product: {role: [T2]}}]", "a comparison has no 'role'"),
        (HEAD + "blocks: [{product: {tau: 0.1}}]", "list"),
        (HEAD + "blocks: [{zip: {tau: [0.1, 0.2], steps: [3]}}]", "differ in length"),
        (HEAD + "blocks: [{product: {tau: [0.1]}, zip: {tau: [0.1]}}]", "in `product` and in `zip`"),
        (HEAD + "blocks: [{product: {tau: [0.1]}}]\nseeds: [-1]", "seeds"),
        (HEAD + "blocks: [{product: {tau: [0.1]}}]\ntitle: again", "twice"),
        (HEAD + "blocks: [{product: {tau: [0.1]}}]\nprofiles: {smoke: 3}", "profiles"),
        (HEAD + "blocks: [{product: {tau: [0.1]}}]\nblcoks: 3", "blcoks"),
        ("title: x\nblocks: [{product: {tau: [0.1]}}]", "either `experiment` or `notebook`"),
        (HEAD + "notebook: 03_train\nblocks: [{product: {tau: [0.1]}}]", "either `experiment` or `notebook`"),
        ("title: x\nnotebook: 03_trian\nblocks: [{product: {tau: [0.1]}}]", "did you mean '03_train'"),
        ("title: x\nnotebook: 03_train\nblocks: [{product: {tua: [0.1]}}]", "did you mean 'tau'"),
    ],
)
def test_a_wrong_file_is_one_clear_error(tmp_path, smoke, text, message):
    with pytest.raises(ParameterError, match=message):
        load_grid(written(tmp_path, text), smoke)


def test_a_million_runs_are_counted_and_refused_before_they_are_laid_out(tmp_path, smoke):
    hundred = str([i / 100 for i in range(100)])
    text = HEAD + f"blocks: [{{product: {{tau: {hundred}, guidance: {hundred}, sigma_min: {hundred}}}}}]"
    with pytest.raises(ParameterError, match="1000000 runs, more than 2000"):
        load_grid(written(tmp_path, text), smoke)


def test_a_grid_that_is_not_there(tmp_path, smoke, capsys):
    with pytest.raises(ParameterError, match="did you mean 'guidance'"):
        grid_file("giudance")
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        load_grid(str(tmp_path / "mine.yaml"), smoke)
    assert main(["grid", "giudance", "--profile", "smoke", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_table_has_a_row_for_every_run_whatever_became_of_it(tmp_path, smoke):
    text = HEAD + "blocks: [{product: {tau: [0.1, 0.2, 0.3]}}]"
    grid = load_grid(written(tmp_path, text), smoke, out_dir=str(tmp_path))
    folder = grid.root / grid.runs[0].name
    folder.mkdir(parents=True)
    write_json(folder / "summary.json", {"psnr_clean": 30.0})
    write_json(folder / "config.json", {"seconds": 1.0})
    keep_failure(grid, grid.runs[1], "ValueError: no")
    table = collect(grid)
    assert table["state"].tolist() == ["done", "failed", "missing"]
    assert table["error"].tolist() == ["", "ValueError: no", ""] and table["tau"].tolist() == [0.1, 0.2, 0.3]
    assert table["psnr_clean"].iloc[0] == 30.0 and grid.load().equals(grid.load())
    assert grid.load()["key"].tolist() == [run.name for run in grid.runs]
    assert failure_file(grid, grid.runs[1]).is_file()
    (folder / "summary.json").write_text("{")
    with pytest.raises(DataError, match="delete"):
        collect(grid)


def test_printed_commands_name_every_unfinished_run(tmp_path, capsys):
    assert main(["grid", "null_encode", "--profile", "smoke", "--out", str(tmp_path), "--print-commands"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == ["0", "1"]
    assert all(line.startswith("medshift grid") for line in lines)
    assert main(["grid", "null_encode", "--profile", "smoke", "--out", str(tmp_path), "--run", "9"]) == 2
