"""No secret gets through `Masking`, wherever it stands, and what is none does."""

import os
from pathlib import Path

import pytest

from cdn_tune.config import load_experiment
from cdn_tune.config.keys import flatten
from cdn_tune.training.runs.masking import Masking, is_secret, masked_urls

ROOT = Path(__file__).resolve().parents[2]
HUSH = "hush/Hush+99"
MASKING = Masking({"HF_TOKEN": HUSH, "AWS_REGION": "eu-west-1", "PWD": "/tmp"}, Path("/home/alice"), "alice")  # noqa: S108


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://me:hush@host/db",
        "postgresql://me:my hush@host/db",
        "mysql+pymysql://me:a@hush@host:3306/db",
        "PosixPath('postgresql:/me:hush@host')",
        "https://example.org/?token=hush&x=1",
        "https://account.blob.example/c/x?sv=1&sig=hush",
        "https://bucket.example/x?X-Amz-Signature=hush",
        "https://hush@dev.example/x",
        "Command '['ray', '--password', 'hush']'",
        "('password', 'hush')",
        '{"error": "{\\"HF_TOKEN\\": \\"hush\\"}"}',
        "s3://bucket/runs?secret_key=hush",
        "password=hush",
        "PASSWORD = 'a hush'",
        "password: a hush",
        "password: 'unfinished hush",
        "INFO: connecting with password: hush",
        '{"api_key": "a \\" hush", "x": 1}',
        "{'aws_secret_access_key': 'hush'}",
        "export AWS_SESSION_TOKEN=hush",
        "MYSQL_PWD=hush",
        "cdn-tune search --password hush",
        "cdn-tune search --api-key='a hush' x",
        "Authorization: Bearer hushhushhush",
        "curl -H 'authorization: basic hushhushhush'",
        "got Bearer hushhushhush.hush",
        f"it said {HUSH} and went on",
        "it said hush%2FHush%2B99",
        "token: |\n  hush\n\n  hush",
        "  my_token: >-  # folded\r\n   hush\r\n     hush",
        "- 'api_key': |2\n    hush\n   hush",
        "INFO: read password: |+\n hush",
        "password:\n  hush",
        "password: 'a\n  hush'",
        "credentials:\n  user:\n    name: hush",
        "passwords:\n- hush\n- hush",
        "token: |\n  " + "x" * 5000 + "\n  hush",
        "-----BEGIN RSA PRIVATE KEY-----\nhush\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nhush",
        "hush\n-----END OPENSSH PRIVATE KEY-----\nrest",
        "hush" * 2000,
        "pass\x1b[1;31mword=hush",
        "pass\x1b[2K\x00\u200bword=hush",
        "'pass\\x1b[31mword=hush' holds a control character",
        "hu\x1b[0msh" + HUSH.removeprefix("hush"),
    ],
)
def test_secrets_of_any_form(text: str) -> None:
    masked = MASKING.text(f"before\n{text}\nafter" if not text.startswith("hush\n") else f"{text}\nafter")
    assert "hush" not in masked
    assert masked.endswith("after") or "BEGIN PRIVATE" in text  # an unfinished key hides all that follows


@pytest.mark.parametrize(
    "secret",
    [
        "AKIA" + "ABCDEFGHIJ234567",
        "ghp_" + "a1B2" * 9,
        "github_pat_" + "a1B2" * 9,
        "hf_" + "aBcD" * 8,
        "sk-" + "proj-a1B2c3D4e5F6g7H8",
        "glpat-" + "a1B2c3D4e5F6g7H8i9J0",
        "eyJ" + "hbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    ],
)
def test_secrets_that_show_by_their_form_alone(secret: str) -> None:
    assert MASKING.text(f"the value {secret}, it was") == "the value ***, it was"


@pytest.mark.parametrize(
    "text",
    [
        "KeyError: 'optim.lr'",
        "tokenizer: words",
        "data.tokens: roberta.hdf5",
        "missing keys: map.convs.0.weight",
        "http://127.0.0.1:8265/jobs by root@node",
        "s3://bucket/runs/x?region=eu-west-1",
        "trial 3 failed: R1@0.5 is nan",
        "/data/charades/vgg_rgb_features.hdf5",
        "/rootfs and homework: 3",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert MASKING.text(text) == text


def test_what_follows_a_secret_of_several_lines_stays() -> None:
    text = "a: |\n  text\n- token: |\n    hush\n\n      hush\n  user: me\n- token: x\npasswords:\n- hush\nb: 1"
    assert MASKING.text(text) == (
        "a: |\n  text\n- token: ***\n    ***\n\n      ***\n  user: me\n- token: ***\npasswords:\n***\nb: 1"
    )


def test_the_user_and_the_home_folder() -> None:
    text = (
        "/home/alice/runs, file:///home/alice, /home/alicette/x, /home/bob/y, C:\\Users\\carol\\z, alice@node, malice"
    )
    assert MASKING.text(text) == ("~/runs, file://~, /home/USER/x, /home/USER/y, C:\\Users\\USER\\z, USER@node, malice")
    assert Masking({}, Path("/root"), "root").text("data.root: /root/x, /data/root") == "data.root: ~/x, /data/root"
    assert Masking({}, Path("/"), None).text("/ and /x") == "/ and /x"


def test_values_of_the_environment() -> None:
    masking = Masking(
        {
            "CDN_TUNE_STORAGE": "postgresql://me:per%20cent@host/db",
            "AWS_SDK_LOAD_CONFIG": "true",
            "MY_KEY": "abc",
            "OTHER_KEY": "longer-than-that",
        }
    )
    assert masking.text("per cent and per%20cent, planted: true, abc, longer-than-that") == (
        "*** and ***, planted: true, abc, ***"
    )


def test_plain_values() -> None:
    value = {
        "command": ["cdn-tune", "search", "--api-key", "hush", "--storage", "mysql://me:a hush@h/d"],
        "nested": {"password": ["hush", {"x": "hush"}], "pin_token": 123456, "token": None, "n": 1.5, "list": [True]},
        "hush=": f"{HUSH}",
    }
    masked = MASKING.plain(value)
    assert masked["command"] == ["cdn-tune", "search", "--api-key", "***", "--storage", "mysql://me:***@h/d"]
    assert masked["nested"]["password"] == ["***", {"x": "***"}]
    assert masked["nested"] | {"password": 0} == {
        "password": 0,
        "pin_token": "***",
        "token": None,
        "n": 1.5,
        "list": [True],
    }
    assert masked["hush="] == "***"


def test_no_key_of_a_configuration_passes_for_a_secret() -> None:
    files = sorted((ROOT / "experiments").rglob("*.yaml"))
    keys = {part for file in files for key in flatten(load_experiment(file).plain()) for part in key.split(".")}
    assert files
    assert [key for key in keys if is_secret(key)] == []


def test_urls_alone() -> None:
    assert masked_urls("mysql://a:b@c/d and password=x") == "mysql://a:***@c/d and password=x"


def test_long_lines_are_left_out_and_odd_ones_come_to_an_end() -> None:
    assert MASKING.text("x" * 5000 + "\nshort") == "(a line of 5,000 characters)\nshort"
    for odd in (
        "=a://:",
        "--a-a-a",
        "password:",
        "://a:",
        "eyJ-",
        "'\"",
        "a=",
        "-----BEGIN PRIVATE KEY",
        "/home/",
        "- ",
        " ",
        "token: |",
        "- token: |\n ",
    ):
        MASKING.text((odd * 4000)[:4000] + "\n" + odd * 100)  # the time limit of tests is the check


def test_this_machines_own_values_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_PASSWORD", "quite-unlikely")
    assert "quite-unlikely" in os.environ.values()
    assert Masking().text("a quite-unlikely text") == "a *** text"
