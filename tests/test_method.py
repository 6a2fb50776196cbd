"""Every section that the code cites is in docs/method.md."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
CITED = re.compile(r"\bmethod (\d[\d.]*\d|\d)(?:(?:, | to | and )(\d[\d.]*\d|\d))*")


def citations() -> dict[str, set[str]]:
    """Section -> files that cite it."""
    found: dict[str, set[str]] = {}
    files = [
        *ROOT.glob("itemized_clip_hf/**/*.py"),
        *ROOT.glob("itemized_clip_hf/**/*.yaml"),
        *ROOT.glob("benchmarks/*.py"),
    ]
    for path in files:
        for match in CITED.finditer(path.read_text(encoding="utf-8")):
            for section in re.findall(r"\d[\d.]*\d|\d", match.group()):
                found.setdefault(section, set()).add(path.name)
    return found


def test_citations_resolve():
    sections = set(re.findall(r"^#+ (\d+(?:\.\d+)?)[. ]", (ROOT / "docs" / "method.md").read_text(), re.M))
    cited = citations()
    assert len(cited) > 20 and len(sections) > 40
    assert not {section: files for section, files in cited.items() if section not in sections}


def test_nothing_cites_what_is_not_here():
    stray = re.compile(r"\(spec [^a]|\bspec \d|specification")
    texts = {path: path.read_text(encoding="utf-8") for path in ROOT.glob("itemized_clip_hf/**/*.py")}
    assert not [path.name for path, text in texts.items() if stray.search(text)]
