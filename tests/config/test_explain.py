"""`quire config` shows every setting, its value and its source, and no secret."""

import json
from dataclasses import fields

import pytest

from quire.config.explain import as_json, explain, rows
from quire.config.fields import SECTIONS
from quire.config.sources import load

pytestmark = pytest.mark.plain


def test_every_setting_is_shown_with_its_source_and_help() -> None:
    text = explain(*load({"block_size": "32"}, None, {"enable_prefix_caching": "off"}))
    for section, cls in SECTIONS.items():
        assert f"[{section}]" in text
        assert all(f"  {f.name} = " in text and f.metadata["help"] in text for f in fields(cls))
    assert "block_size = 32    (flag --block-size)" in text
    assert "enable_prefix_caching = false    (environment QUIRE_CACHE__ENABLE_PREFIX_CACHING)" in text
    assert "revision = unset    (default)" in text


def test_secrets_are_masked() -> None:
    config, provenance = load({"api_key": "s3cret"}, None, {})
    assert "s3cret" not in explain(config, provenance)
    assert "s3cret" not in json.dumps(as_json(config, provenance))
    assert as_json(config, provenance)["server"]["api_key"] == {"value": "********", "source": "flag --api-key"}


def test_an_unset_secret_is_shown_as_unset() -> None:
    shown = {row.name: row.value for row in rows(*load({}, None, {}))}
    assert shown["api_key"] is None
