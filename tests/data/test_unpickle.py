import builtins
import os
import pickle

import pytest

from pixel_sail.data.errors import DatasetError
from pixel_sail.data.sources.unpickle import load_plain_pickle


class Calls:
    """Pickles to a call of `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class SomeClass:
    pass


def _stored(tmp_path, contents: bytes):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(contents)
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_comes_back_in_every_protocol(tmp_path, protocol):
    value = [{"ref_id": 1, "sent": "a café", "box": (1.5, -2), "big": 2**70, "none": None, "yes": True}]
    assert load_plain_pickle(_stored(tmp_path, pickle.dumps(value, protocol))) == value


def test_python_2_text_is_read_as_utf8_else_as_latin1(tmp_path):
    # What Python 2 writes for [u'caf\\xe9', 'caf\\xc3\\xa9'] and for ['caf\\xe9'], protocol 2 and 0.
    utf8 = b"\x80\x02]q\x00(X\x05\x00\x00\x00caf\xc3\xa9q\x01U\x05caf\xc3\xa9q\x02e."
    latin = b"(lp0\nS'caf\\xe9'\np1\na."
    assert load_plain_pickle(_stored(tmp_path, utf8)) == ["café", "café"]
    assert load_plain_pickle(_stored(tmp_path, latin)) == ["café"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_is_refused_and_nothing_runs(tmp_path, protocol):
    trace = tmp_path / "it-ran"
    attacks = {
        "system": Calls(os.system, f"touch {trace}"),
        "eval": Calls(builtins.eval, f"open({str(trace)!r}, 'w')"),
        "(SomeClass|copy_reg._reconstructor)": SomeClass(),  # the latter in protocols 0 and 1
    }
    for name, attack in attacks.items():
        path = _stored(tmp_path, pickle.dumps([{"ref_id": 1}, attack], protocol))
        with pytest.raises(DatasetError, match=rf"refused .*refs\(unc\).p: the pickle asks for .*{name}"):
            load_plain_pickle(path)
        assert not trace.exists()


def test_the_refusal_names_what_was_asked_for(tmp_path):
    with pytest.raises(DatasetError, match=r"the pickle asks for (posix|nt)\.system, which could run code"):
        load_plain_pickle(_stored(tmp_path, pickle.dumps(Calls(os.system, "true"))))
    persistent = b"\x80\x02U\x01aQ."
    with pytest.raises(DatasetError, match="persistent object 'a'"):
        load_plain_pickle(_stored(tmp_path, persistent))


def test_damaged_files_say_so(tmp_path):
    whole = pickle.dumps([{"ref_id": 1}], 2)
    for contents in (whole[:-4], b"", b"not a pickle", b"\x80\x02K\x01K\x02R."):  # the last calls the number 1
        with pytest.raises(DatasetError, match="is not a complete pickle file"):
            load_plain_pickle(_stored(tmp_path, contents))
    with pytest.raises(DatasetError, match="no file .*absent.p"):
        load_plain_pickle(tmp_path / "absent.p")
