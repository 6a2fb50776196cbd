"""The picture of the report in the README: a generated study, scored by the model of `make demo`, in a real browser."""

import argparse
import io
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ARGUMENTS = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")


def main() -> None:
    """Scores the demo's study and takes the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=Path("demo-output"), help="what `itemized-clip demo` wrote")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("report.webp"))
    arguments = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        sys.exit("there is no chromium: make servers")
    results = json.loads((arguments.demo / "results.json").read_text())
    prompts = [word for row in results["findings"].values() for word in ("-p", row["prompt"])]
    with tempfile.TemporaryDirectory() as place:
        page = Path(place) / "report.html"
        asked = [
            "-m",
            arguments.demo / "model",
            "-i",
            arguments.demo / "study",
            "-o",
            Path(place) / "maps",
            "--html",
            page,
        ]
        command = [sys.executable, "-m", "itemized_clip_cli", "explain", *map(str, asked), *prompts]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        photograph(page, program, arguments.output)
    print(f"{arguments.output}: {arguments.output.stat().st_size:,} bytes")


def photograph(page: Path, program: str, output: Path) -> None:
    """What a browser shows of a page."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        tab = browser.new_page(viewport={"width": 1360, "height": 830})
        tab.goto(page.as_uri())
        tab.wait_for_selector("html[data-ready=yes]", timeout=120_000)
        tab.wait_for_timeout(1000)
        picture = tab.screenshot()
        browser.close()
    Image.open(io.BytesIO(picture)).convert("RGB").save(output, quality=88, method=6)


if __name__ == "__main__":
    main()
