import codecs
import json

import pytest

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.files import read_csv, read_json, read_text

VALUES = {"text": "Où est le café?", "number": 5}
ENCODED = {
    "utf-8": lambda text: text.encode(),
    "utf-8 with a mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "utf-16 with a mark": lambda text: text.encode("utf-16"),
    "utf-16-be with a mark": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "utf-16-le": lambda text: text.encode("utf-16-le"),
    "utf-32 with a mark": lambda text: text.encode("utf-32"),
}


@pytest.mark.parametrize("encoding", ENCODED)
def test_json_and_csv_are_read_in_the_encodings_that_say_what_they_are(tmp_path, encoding):
    path = tmp_path / "a.json"
    path.write_bytes(ENCODED[encoding](json.dumps(VALUES, ensure_ascii=False)))
    assert read_json(path) == VALUES
    path.write_bytes(ENCODED[encoding]('Index, Object\r\n1, "a café,\nopen"\r\n'))
    assert read_csv(path) == [["Index", "Object"], ["1", "a café,\nopen"]]


def test_another_encoding_is_named_with_its_place_and_what_to_do(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(("{\n" + json.dumps(VALUES, ensure_ascii=False)[1:]).encode("cp1252"))
    for read in (read_text, read_json, read_csv):
        with pytest.raises(DatasetError, match=r"a.json, line 2: .* not UTF-8 .*'.*Où .*iconv -f cp1252") as error:
            read(path)
        assert "\n" not in str(error.value)
    assert "Où" in read_text(path, fallback="cp1252")


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(DatasetError, match="no file .*a.json"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DatasetError, match="a.json is not valid JSON"):
        read_json(tmp_path / "a.json")
