"""Numbers on the command line that make no sense: refused at once, with what is wanted."""

from __future__ import annotations

import pytest
from in_process import call_main, load_tool

CASES = """
prepare_data scenes --out x --images 0
prepare_data scenes --out x --images -1
prepare_data scenes --out x --images many
prepare_data scenes --out x --images 3 --long-side 1
prepare_data scenes --out x --images 3 --long-side 1000000
prepare_data scenes --out x --images 3 --workers 0
prepare_data scenes --out x --images 3 --workers 1000000
prepare_data scenes --out x --images 3 --seed -1
make_shards c.yaml --out x --samples 0
make_shards c.yaml --out x --samples 9 --samples-per-shard 0
make_shards c.yaml --out x --samples 9 --workers 0
cache_expert c.yaml --expert e --batch 0
attend_segment m --segmenter sam:s --out x --max-images 0
attend_segment m --segmenter sam:s --out x --max-new-tokens 0
grounding_emergence m --out x --examples -1
grounding_emergence m --out x --max-images 0
bench step --repeats 0
bench step --threads 0
bench data c.yaml --samples 0
bench distill c.yaml --steps 0
bench score x --data-root x --images -5
"""


@pytest.mark.parametrize("line", CASES.strip().splitlines())
def test_numbers_that_make_no_sense(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    name, *arguments = line.split()
    with pytest.raises(SystemExit) as ended:
        call_main(monkeypatch, load_tool(name), *arguments)
    assert ended.value.code == 2
    assert f"'{arguments[-1]}' is not a whole number " in capsys.readouterr().err
