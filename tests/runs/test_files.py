import json

import pytest

from zosam_jax.runs import files


@pytest.mark.quick
def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "summary.json"
    files.write_json(path, {"loss": 1.0})
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text()) == {"loss": 1.0}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"loss": NaN}', "NaN is no JSON"),
        ('{"loss": 1e400}', "1e400 is too large a number"),
        ("[" * 100_000, "too deep"),
        ("9" * 5000, "4300 digits"),
    ],
)
def test_what_json_cannot_mean_is_refused(text, part):
    with pytest.raises(ValueError, match=part):
        files.parse(text)
