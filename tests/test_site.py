"""The site needs no network, shows everything, and does not name the machine it was made on."""

import getpass
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from nbformat import v4

from medshift.errors import DataError
from medshift.repro import site as module
from medshift.repro.pages import NO_ALT, clean, tidy
from medshift.repro.run import configure
from medshift.repro.site import build_site
from medshift.repro.stage import write_json
from medshift.widgets.pictures import Dial, Pictures
from medshift.widgets.static import SCRIPT, player

LOADS = ("src", "srcset", "data", "poster", "background", "xlink:href")
HOSTILE = """<script src="https://cdn.example/x.js">alert(1)</script><link rel="stylesheet" href="//cdn.example/x.css">
<style>@import url(https://cdn.example/y.css);</style><iframe src="https://cdn.example/frame"></iframe>
<img src="https://cdn.example/far.png"><p style="background: url(https://cdn.example/z.png)" onclick="alert(1)">kept</p>
<svg><image href="https://cdn.example/v.png"/><rect fill="url(https://cdn.example/f)"/></svg>
<a href="javascript:alert(1)">inert</a> <a href="https://example.org/paper">the paper</a>"""


PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c6360000000020001e221bc33"
    "0000000049454e44ae426082"
)
PICTURES = Pictures("Turn", (Dial("τ", ("0", "1")),), {(0,): PIXEL, (1,): PIXEL}, {(0,): "noise", (1,): "data"})


class Page(HTMLParser):
    """What a page loads, links to, and shows without words."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.handlers: list[str] = []
        self.css = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        held = dict(attrs)
        if tag == "img":
            self.images.append(held)
        if tag == "a" and "href" in held:
            self.links.append(held["href"] or "")
        for name, value in attrs:
            if name in LOADS or (name == "href" and tag != "a"):
                self.loaded.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)
            self.css += (value or "") if name in ("style", "fill", "mask", "filter") else ""

    def handle_data(self, data: str) -> None:
        self.css += data if self.tags and self.tags[-1] == "style" else ""


def pages(index: Path) -> dict[str, Page]:
    return {path.name: Page(path) for path in index.parent.glob("*.html")}


def write(path: Path, *cells: nbformat.NotebookNode) -> None:
    nbformat.write(v4.new_notebook(cells=list(cells)), path)


def code(source: str, *outputs: nbformat.NotebookNode) -> nbformat.NotebookNode:
    return v4.new_code_cell(source, outputs=list(outputs), execution_count=1)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of one finished notebook, one without a receipt that holds what others might, and a grid."""
    out = tmp_path_factory.mktemp("out")
    run = configure("01_data", {"profile": "smoke", "out_dir": str(out)})
    figure, axis = plt.subplots(figsize=(1, 1))
    axis.plot([0, 1])
    shown: list[dict] = []
    run.tell = shown.append  # type: ignore[method-assign]
    run.figure(figure, "line", 'A "rising" line, <τ>.')
    run.table(pd.DataFrame({"name": ["<b>", "plain"], "value": [0.123456789, 12.0]}), "rows")
    build = run.build
    files = {name: "" for event in shown for name in event["files"]}
    write_json(build / "01_data.receipt.json", {"files": files, "seconds": 90.0, "shown": shown})
    (build / "figures" / "01_former.png").write_bytes((build / "figures" / "01_line.png").read_bytes())
    shutil.copy(build / "figures" / "01_line.png", build / "figures" / "04_later.png")
    picture = "iVBORw0KGgo="
    displayed = v4.new_output("display_data", {"image/png": picture}, metadata={"image/png": {"alt": "A line."}})
    nameless = v4.new_output("display_data", {"image/png": picture})
    place = f"{Path.home()}/secret/x.py {out.resolve()}/runs/smoke /home/someone/data/y.png file:///srv/share/z.csv"
    write(
        build / "01_data.ipynb",
        v4.new_markdown_cell("# The *first* title\n\nSee [the next](04_tau.ipynb#end), [a file](../secret/plan.md)."),
        code("x = 1", displayed, nameless),
    )
    write(
        build / "04_tau.ipynb",
        v4.new_markdown_cell("![far](https://cdn.example/markdown.png) ![near](figures/01_line.png)"),
        code(
            f"path = '{out.resolve()}/runs/x'  # a ratio a/b/c stays",
            v4.new_output("stream", text=f"{place}\n"),
            v4.new_output("display_data", {"text/html": HOSTILE}),
            v4.new_output("display_data", {"application/javascript": "alert(1)"}),
            v4.new_output("display_data", {"text/html": player(PICTURES)}),
            v4.new_output(
                "display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "W"}
            ),
            v4.new_output("error", ename="E", evalue="v", traceback=[f"File {place}:3, in f"]),
        ),
    )
    write(build / "03_train.failed.ipynb", v4.new_markdown_cell("# Failed"))
    (build / "grids").mkdir()
    (build / "grids" / "guidance.csv").write_text("w,gmsd\n1.5,0.25\n")
    return build_site("smoke", out_dir=str(out))


def test_no_page_loads_anything_from_elsewhere_or_runs_anything(built: Path) -> None:
    found = pages(built)
    assert sorted(found) == ["01_data.html", "04_tau.html", "glossary.html", "index.html"]
    for name, page in found.items():
        for address in page.loaded:
            assert address.startswith(("data:image/", "../figures/")), (name, address[:80])
        assert not {"link", "iframe", "object", "embed", "base"} & set(page.tags), name
        scripts = re.findall(r"<script[^>]*>(.*?)</script>", (built.parent / name).read_text(), re.DOTALL)
        assert [script.strip() for script in scripts] == ([SCRIPT] if name == "04_tau.html" else []), name
        assert not page.handlers and not re.search(r"@import|url\s*\(", page.css), name
        assert not [link for link in page.links if link.startswith(("javascript:", "//"))], name
        assert "alert(1)" not in (built.parent / name).read_text()
    hostile = (built.parent / "04_tau.html").read_text()
    assert ">kept</p>" in hostile and "inert" in hostile and "https://example.org/paper" in found["04_tau.html"].links


def test_every_picture_has_words_and_every_local_address_leads_somewhere(built: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(built.parent.parent, tmp_path / "elsewhere") / "site"
    for name, page in pages(moved / "index.html").items():
        for image in page.images:
            assert image.get("alt"), name
        for address in [*page.links, *(a for a in page.loaded if not a.startswith("data:"))]:
            parts = urlsplit(address)
            if not parts.scheme and parts.path:
                assert (moved / unquote(parts.path)).is_file(), (name, address)
    alts = [image["alt"] for image in pages(moved / "index.html")["01_data.html"].images]
    assert alts[0] == "A line." and alts[1]
    text = (moved / "04_tau.html").read_text()
    assert "[far]" in text and "[near]" in text


def test_the_index_shows_what_was_drawn_and_says_how_long_it_took(built: Path) -> None:
    text, page = built.read_text(), pages(built)["index.html"]
    assert "The *first* title" in text and "1.5 min" in text and "has no receipt" in text and "Failed" not in text
    shown = {image["src"]: image for image in page.images}
    assert list(shown) == ["../figures/01_line.png", "../figures/04_later.png"]  # no figure of a former run
    assert shown["../figures/01_line.png"]["alt"] == 'A "rising" line, <τ>.'
    for address in ("01_data.html", "../01_data.ipynb", "../figures/01_line.pdf", "../figures/01_line.svg"):
        assert address in page.links
    assert "&lt;b&gt;" in text and "<td>0.1235</td>" in text  # escaped; rounded
    assert "guidance" in text and "<td>0.25</td>" in text and "../grids/guidance.csv" in page.links


def test_links_between_notebooks_lead_to_their_pages_and_others_are_undone(built: Path) -> None:
    page = pages(built)["01_data.html"]
    assert "04_tau.html#end" in page.links and not [link for link in page.links if "plan.md" in link]
    assert "a file" in (built.parent / "01_data.html").read_text()


def test_no_page_names_this_machine(built: Path) -> None:
    home, out = str(Path.home()), str(built.parents[3].resolve())
    for path in built.parent.glob("*.html"):
        text = re.sub(r"data:image/[^\"]*", "", path.read_text())
        for place in (f"{home}/", out, "/home/", "someone", "/srv/", str(Path(module.__file__).parents[2]) + "/"):
            assert place not in text, (path.name, place)
        if getpass.getuser() != "root":
            assert not re.search(rf"\b{re.escape(getpass.getuser())}\b", text)
    text = (built.parent / "04_tau.html").read_text()
    assert "a ratio a/b/c stays" in text and "~/secret/x.py" in text and "…/z.csv" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("File /srv/code/medshift/cli.py:3", "File …/cli.py:3"),
        ("'/Users/user/x/y.py'", "'~/x/y.py'"),
        ("/home/user", "~"),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
        ("mm/s/pixel, (a+b)/2/3, 3/4/2020", "mm/s/pixel, (a+b)/2/3, 3/4/2020"),
    ],
)
def test_paths_are_shortened_and_nothing_else(text: str, expected: str) -> None:
    assert tidy(text) == expected


@pytest.mark.parametrize("alt", ["", 'alt=""', 'alt=" "'])
def test_a_picture_without_words_gets_some(alt: str) -> None:
    assert f'alt="{NO_ALT}"' in clean(f'<img src="data:image/png;base64,AA==" {alt}>', {})


@pytest.mark.parametrize("address", ["http://[", "data:text/html,x", "file:///etc/x", "//cdn.example/x", "vbscript:x"])
def test_an_address_that_is_no_link_of_the_web_becomes_text(address: str) -> None:
    assert clean(f'<a href="{address}">word</a>', {}) == "word"


def test_a_page_at_fault_leaves_the_former_site(built: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(built.parent.parent, out / "build" / "smoke")
    site = out / "build" / "smoke" / "site"
    before = {path.name: path.read_bytes() for path in site.iterdir()}
    (out / "build" / "smoke" / "02_codec.ipynb").write_text("{half")
    with pytest.raises(DataError, match="02_codec.ipynb cannot be read"):
        build_site("smoke", out_dir=str(out))
    (out / "build" / "smoke" / "02_codec.ipynb").unlink()
    (out / "build" / "smoke" / "figures" / "01_line.svg").unlink()
    with pytest.raises(DataError, match="01_line.svg is missing"):
        build_site("smoke", out_dir=str(out))
    assert {path.name: path.read_bytes() for path in site.iterdir()} == before
    with pytest.raises(DataError, match="medshift paper --profile cpu"):
        build_site("cpu", out_dir=str(out))


def test_a_rewritten_site_holds_no_page_of_a_notebook_that_is_gone(built: Path, tmp_path: Path) -> None:
    shutil.copytree(built.parent.parent, tmp_path / "build" / "smoke")
    (tmp_path / "build" / "smoke" / "04_tau.ipynb").unlink()
    index = build_site("smoke", out_dir=str(tmp_path))
    assert sorted(path.name for path in index.parent.iterdir()) == ["01_data.html", "glossary.html", "index.html"]
    assert "../figures/04_later.png" in index.read_text()  # its figure is still there, and shown


def test_a_player_keeps_its_pictures_and_dials_and_the_page_turns_them_once(built: Path) -> None:
    text = (built.parent / "04_tau.html").read_text(encoding="utf-8")
    assert text.count('class="medshift-player"') == 1 and text.count('type="range"') == 1
    assert re.findall(r'data-place="([\d ]+)"', text) == ["0", "1"]
    assert text.count("data:image/png;base64,") >= 2 and "τ = 1: data" in text
    assert text.count("querySelectorAll") == SCRIPT.count("querySelectorAll")


def test_readers_are_led_to_notebooks_that_are_there_and_to_the_glossary(built: Path) -> None:
    index = built.read_text(encoding="utf-8")
    assert "check or reproduce" not in index  # none of their notebooks is in this build
    assert "use or extend the code" in index and 'href="glossary.html"' in index
    assert "medshift.translate.MedShift" in (built.parent / "glossary.html").read_text(encoding="utf-8")


EXERCISE = """def double(x):
    ### BEGIN SOLUTION
    ### STUB return ...  # twice x
    return 2 * x
    ### END SOLUTION"""


def test_solutions_are_folded_and_the_question_stands_open(tmp_path: Path) -> None:
    from bs4 import BeautifulSoup

    def tagged(cell: nbformat.NotebookNode, tag: str) -> nbformat.NotebookNode:
        cell.metadata["tags"] = [tag]
        return cell

    build = tmp_path / "build" / "smoke"
    build.mkdir(parents=True)
    write(
        build / "00_lesson.ipynb",
        v4.new_markdown_cell("# A lesson"),
        *(
            cell
            for k in (1, 2)
            for cell in (
                v4.new_markdown_cell(f"### Exercise {k}\n\nWhat is twice x?"),
                tagged(code(EXERCISE), "exercise"),
                tagged(code(f"check(double, {k})", v4.new_output("stream", text=f"Right: answer {k}\n")), "check"),
                tagged(v4.new_markdown_cell(f"**Why {k}.** Because."), "solution"),
            )
        ),
        code("show(pictures)", v4.new_output("display_data", {"text/html": player(PICTURES)})),
    )
    page = (build_site("smoke", out_dir=str(tmp_path)).parent / "00_lesson.html").read_text()
    soup = BeautifulSoup(page, "html.parser")
    folded = soup.find_all("details")
    assert len(folded) == 2 and all(not one.has_attr("open") for one in folded)
    for k, one in enumerate(folded, 1):
        text = one.get_text()
        assert text.strip().startswith("Show the solution")
        assert "return 2 * x" in text and f"Right: answer {k}" in text and f"Why {k}." in text
        assert f"Exercise {k}" not in text and "SOLUTION" not in text and "figure" not in str(one)
        one.extract()
    rest = soup.get_text()
    assert "2 * x" not in rest and "Right:" not in rest and "Why" not in rest
    assert rest.count("return ...  # twice x") == 2 and "Exercise 2" in rest and soup.find("figure") is not None
