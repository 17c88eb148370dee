"""Write docs/images/report.png, the picture of a report for README: its first screen at 1280 pixels, in few colours.

    python -m benchmarks.report_picture [results/report/index.html]

Needs Chromium (apt-get install chromium). Fails if the picture is larger than 200 KB.
"""

import argparse
import io
from pathlib import Path

from PIL import Image

from tests.fakes.chromium import open_page

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "report.png"
WIDTH, HEIGHT = 1280, 1100
MOST_BYTES = 200_000
COLOURS = 128

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("report", nargs="?", type=Path, default=Path("results/report/index.html"))


def picture(report: Path) -> bytes:
    """The report's first screen as a PNG."""
    with open_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light") as page:
        page.goto(report.resolve().as_uri())
        shot = Image.open(io.BytesIO(page.screenshot()))
    written = io.BytesIO()
    shot.convert("RGB").quantize(COLOURS).save(written, "PNG", optimize=True)
    return written.getvalue()


def main() -> None:
    """Write the picture."""
    made = picture(PARSER.parse_args().report)
    if len(made) > MOST_BYTES:
        raise SystemExit(f"{len(made)} bytes, at most {MOST_BYTES} fit: lower COLOURS or HEIGHT")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_bytes(made)
    print(f"{PICTURE}: {len(made)} bytes")


if __name__ == "__main__":
    main()
