"""The page about the speed of networks is what the records say."""

import json


def test_the_page_of_the_project_is_up_to_date(root, run):
    run("tools/pages/speed_page.py", "--check")
    page = (root / "docs/speed.md").read_text()
    record = json.loads((root / "docs/records/h200_speed_1024x2048.json").read_text())
    for name, times in record["models"].items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}`"))
        assert f"{times['graph fp16 nhwc']:.2f}" in row
    assert (root / "docs/images/speed.png").stat().st_size > 10_000
