"""A tenant's file: what a short one means, what a wrong one is told, and that no secret leaves it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from syncd.config import (
    FOLDER,
    SERVICE_FILE,
    Configuration,
    ServiceConfig,
    TenantConfig,
    json_schema,
    load,
    load_service,
    missing_secrets,
)
from syncd.core.guard import Limit, Limits
from syncd.core.merge import Flow, OnConflict, Policy
from syncd.core.model import KINDS
from syncd.core.plan import KindRules, OnDelete, When
from syncd.errors import ConfigError

MINIMAL = """\
propstreet:
  auth: {client_id: {env: PS_ID}, client_secret: {env: PS_SECRET}}
pairs:
  - connector: hubspot
    auth: {access_token: {file: /run/secrets/hubspot}}
"""

ROOT = Path(__file__).parents[2]
EXAMPLE = (ROOT / "config/tenants/example.yaml.disabled").read_text(encoding="utf-8")

#: The example of the design, section 5.
DESIGN = """\
tenant: nordhaus
propstreet:
  base_url: https://app.propstreet.com        # any URL, http on loopback too: sandboxes and tests
  auth: {client_id: {env: NORDHAUS_PS_ID}, client_secret: {env: NORDHAUS_PS_SECRET}}
pairs:
  - name: hubspot
    connector: hubspot                         # entry point in group syncd.connectors
    namespace: hubspot                         # how Propstreet's externalRefs name this CRM
    base_url: https://api.hubapi.com
    auth: {access_token: {file: /run/secrets/nordhaus-hubspot}}
    every: 30s
    kinds:
      deal:
        create: {in_crm: true, in_propstreet: {when: {pipeline: real-estate}}}
        deletes: {to_crm: archive, to_propstreet: hold}
        pipeline: real-estate
        stages: {qualification: [none, property_added, drafting], proposal: [published, verified], negotiation: [communicated]}
        fields: {amount: both, name: {policy: both, conflict: propstreet}}
      contact: {create: {in_crm: true, in_propstreet: true}}
    share_of_quota: 0.6
"""  # noqa: E501


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests do not depend on how this machine is set up."""
    for name in ("SYNCD_DATABASE_URL", "SYNCD_DATA_DIR", "SYNCD_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def read(folder: Path, text: str, name: str = "acme.yaml") -> Configuration:
    (folder / name).write_text(text, encoding="utf-8")
    return load(folder)


def tenant_of(folder: Path, text: str) -> TenantConfig:
    found = read(folder, text)
    assert [str(problem) for problem in found.problems] == []
    return found.tenants[0]


def problems_of(folder: Path, text: str) -> list[str]:
    """The problems, without the name of the folder."""
    found = read(folder, text)
    assert found.tenants == ()
    return [str(problem).removeprefix(f"{folder}/") for problem in found.problems]


def with_pair(lines: str) -> str:
    return MINIMAL + "".join(f"    {line}\n" for line in lines.splitlines())


def with_kinds(lines: str) -> str:
    return with_pair("kinds:\n" + "\n".join(f"  {line}" for line in lines.splitlines()))


# --- what a file means -----------------------------------------------------------------------


def test_a_file_with_two_auth_blocks_and_a_connector_is_enough(tmp_path: Path) -> None:
    """Every other key has a default that is safe and useful."""
    tenant = tenant_of(tmp_path, MINIMAL)
    (pair,) = tenant.pairs
    assert (tenant.tenant, tenant.enabled, tenant.compare_every) == ("acme", True, timedelta(hours=24))
    assert (tenant.propstreet.base_url, tenant.propstreet.login_url, tenant.propstreet.options) == (None, None, {})
    assert (pair.connector, pair.name, pair.namespace) == ("hubspot", "hubspot", "hubspot")
    assert (pair.every, pair.share_of_quota, pair.visits) == (timedelta(seconds=30), 0.6, 300)
    assert tuple(pair.kinds) == KINDS
    assert tenant.limits(pair) == Limits()
    assert tenant.file == tmp_path / "acme.yaml"
    relation = KindRules(create_in_left=When(), deletes_to_right=OnDelete.ARCHIVE)
    assert tenant.rules(pair) == {
        "company": KindRules(create_in_left=When()),
        "contact": KindRules(create_in_left=When()),
        "employment": relation,
        "deal": KindRules(create_in_left=None),
        "deal_contact": relation,
    }


def test_the_example_of_the_design_is_read(tmp_path: Path) -> None:
    """What the design promises is what a file may say."""
    tenant = tenant_of(tmp_path, DESIGN)
    (pair,) = tenant.pairs
    deal = pair.kinds["deal"]
    assert tenant.tenant == "nordhaus"
    assert deal.pipeline == "real-estate"
    assert deal.stages == {
        "qualification": ("none", "property_added", "drafting"),
        "proposal": ("published", "verified"),
        "negotiation": ("communicated",),
    }
    assert tenant.rules(pair)["deal"] == KindRules(
        create_in_left=When({"pipeline": ("real-estate",)}),
        create_in_right=True,
        deletes_to_right=OnDelete.ARCHIVE,
        deletes_to_left=OnDelete.HOLD,
        policies={"amount": Policy(), "name": Policy(Flow.BOTH, OnConflict.PROPSTREET)},
    )
    assert deal.watched() == ("pipeline",)


def test_the_example_file_is_complete_and_right(tmp_path: Path) -> None:
    """The example loads as it stands and names every key there is."""
    tenant_of(tmp_path, EXAMPLE)
    assert [name for name in _keys(json_schema()) if not re.search(rf"\b{name}:", EXAMPLE)] == []


def test_the_service_file_that_is_shipped_says_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removing config/syncd.yaml changes nothing, and no active tenant is shipped."""
    monkeypatch.chdir(ROOT)
    assert load_service(SERVICE_FILE) == load_service() == ServiceConfig()
    assert [file.name for file in FOLDER.glob("*.y*ml")] == []


def test_a_kind_is_switched_off_by_a_word(tmp_path: Path) -> None:
    """A kind that is off is not among the pair's kinds; on, or nothing, means its defaults."""
    pair = tenant_of(tmp_path, with_kinds("company: off\nemployment: false\ndeal: on\ncontact:")).pairs[0]
    assert tuple(pair.kinds) == ("contact", "deal", "deal_contact")
    assert pair.kinds["deal"].rules().create_in_left is None


def test_words_and_numbers_stay_the_text_that_stands_there(tmp_path: Path) -> None:
    """The country ``no`` is Norway, the policy ``off`` is off, an id keeps its zeros, a mark may be a number."""
    pair = tenant_of(
        tmp_path,
        with_kinds("deal: {pipeline: 0012, only_when: {country: no, owner: [17, 'x']}, fields: {amount: off}}"),
    ).pairs[0]
    deal = pair.kinds["deal"]
    assert deal.pipeline == "0012"
    assert deal.rules().scope == When({"country": ("no",), "owner": ("17", "x")})
    assert deal.rules().policies == {"amount": Policy(Flow.OFF)}


@pytest.mark.parametrize(
    ("set_", "day"),
    [
        ("deletes: {floor: 500, share: 0.9}", Limit(500, 0.9)),
        ("deletes: {floor: 10, share: 0.01}", Limit(20, 0.2)),
        ("deletes: {share: 1}", Limit(20, 1.0)),
        ("deletes: {floor: 500}, deletes_in_a_day: {floor: 3}", Limit(3, 0.2)),
        ("deletes: {floor: 500, share: 1}, deletes_in_a_day: {floor: 0, share: 0}", Limit(0, 0.0)),
    ],
)
def test_what_a_run_may_delete_a_day_may_unless_the_file_says_less(tmp_path: Path, set_: str, day: Limit) -> None:
    """Whoever raises the limit of a run is not stopped by a smaller one that the file does not name."""
    tenant = tenant_of(tmp_path, with_pair(f"limits: {{{set_}}}"))
    assert tenant.limits(tenant.pairs[0]).deletes_in_a_day == day


def test_a_part_of_a_block_leaves_the_defaults_of_the_rest(tmp_path: Path) -> None:
    """Setting one key of a block does not unset the kind's own defaults beside it."""
    tenant = tenant_of(
        tmp_path,
        with_pair("limits: {deletes: {floor: 50}}")
        + "    kinds: {deal: {create: {in_crm: false}}, deal_contact: {deletes: {to_propstreet: archive}}}\n",
    )
    (pair,) = tenant.pairs
    assert tenant.limits(pair) == Limits(deletes=Limit(50, 0.05), deletes_in_a_day=Limit(50, 0.2))
    assert tenant.rules(pair)["deal"] == KindRules(create_in_left=None, create_in_right=False)
    assert tenant.rules(pair)["deal_contact"].deletes_to_right is OnDelete.ARCHIVE
    assert tenant.rules(pair)["deal_contact"].deletes_to_left is OnDelete.ARCHIVE


def test_the_conflict_policy_of_a_kind_holds_for_its_fields(tmp_path: Path) -> None:
    """A field follows its kind unless it says otherwise."""
    lines = "contact: {conflict: hold, fields: {phone: {conflict: crm}, email: if_empty, tags: {crm_field: labels}}}"
    rules = tenant_of(tmp_path, with_kinds(lines)).pairs[0].kinds["contact"].rules()
    assert rules.default == Policy(conflict=OnConflict.HOLD)
    assert rules.policies == {
        "phone": Policy(conflict=OnConflict.CRM),
        "email": Policy(Flow.IF_EMPTY, OnConflict.HOLD),
        "tags": Policy(conflict=OnConflict.HOLD),
    }


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("1s", {"seconds": 1}),
        ("5m", {"minutes": 5}),
        ("1h", {"hours": 1}),
        ("1d", {"days": 1}),
        ("90s", {"minutes": 1.5}),
    ],
)
def test_a_duration_has_a_unit(tmp_path: Path, said: str, meant: Mapping[str, float]) -> None:
    """Seconds, minutes, hours and days, one of them at a time."""
    assert tenant_of(tmp_path, with_pair(f"every: {said}")).pairs[0].every == timedelta(**meant)


def test_webhooks_have_one_secret_or_several_and_need_none_to_sync(tmp_path: Path) -> None:
    """What proves a delivery has no part in a run: without it all else is right, and another one changes nothing."""
    lines = "webhooks: {secrets: [{file: new}, {env: BEFORE}]}"
    hub = MINIMAL.replace("propstreet:\n", "propstreet:\n  webhooks: {secret: {file: hook}}\n")
    assert hub != MINIMAL
    tenant = tenant_of(tmp_path, hub + "".join(f"    {line}\n" for line in lines.splitlines()))
    (pair,) = tenant.pairs
    assert tenant.propstreet.webhooks is not None
    assert pair.webhooks is not None
    assert [ref.file or ref.env for ref in (*tenant.propstreet.webhooks.refs, *pair.webhooks.refs)] == [
        "hook", "new", "BEFORE",
    ]  # fmt: skip
    assert [place for place, _ in tenant.webhook_secrets()] == [
        ("propstreet", "webhooks", "secret"),
        ("pairs", 0, "webhooks", "secrets", 0),
        ("pairs", 0, "webhooks", "secrets", 1),
    ]
    with pytest.raises(ConfigError, match=r"pairs\[0\].webhooks.secrets\[1\]: the environment variable BEFORE"):
        pair.webhooks.refs[1].read()
    plain = tenant_of(tmp_path, MINIMAL)
    assert tenant.fingerprint(pair) == plain.fingerprint(plain.pairs[0])
    assert len(missing_secrets(tenant)) == len(missing_secrets(plain))
    assert plain.propstreet.webhooks is None


def test_a_fingerprint_follows_what_is_in_force(tmp_path: Path) -> None:
    """The order of keys, a default written out and another pair change nothing; a setting or a reference does."""

    def fingerprint(text: str) -> str:
        tenant = tenant_of(tmp_path, text)
        return tenant.fingerprint(tenant.pairs[0])

    usual = fingerprint(MINIMAL)
    assert re.fullmatch(r"[0-9a-f]{64}", usual)
    for same in (
        MINIMAL + "tenant: acme\n",
        with_pair("every: 30s\nlimits: {creates: {share: 0.25}}\nkinds: {deal: {}}"),
        with_pair("base_url:"),
        MINIMAL + "  - {connector: salesforce}\n",
    ):
        assert fingerprint(same) == usual, same
    for other in (
        with_pair("every: 31s"),
        with_pair("limits: {creates: {share: 0.2}}"),
        with_kinds("deal: off"),
        MINIMAL.replace("PS_SECRET", "PS_OTHER"),
        MINIMAL + "tenant: acme2\n",
    ):
        assert fingerprint(other) != usual, other


# --- what a wrong file is told ---------------------------------------------------------------

STAGES = "none, property_added, drafting, published, verified, communicated, won"

REFUSED = {
    "an unknown key": (
        with_kinds("deal:\n  steges: {a: none}"),
        "acme.yaml:8: pairs[0].kinds.deal.steges: unknown key 'steges'; did you mean 'stages'? "
        "Known: conflict, create, defaults, deletes, fields, only_when, pipeline, settle, stages.",
    ),
    "an unknown key at the top": (
        MINIMAL + "enable: true\n",
        "acme.yaml:6: enable: unknown key 'enable'; did you mean 'enabled'? "
        "Known: audit, compare_every, enabled, pairs, propstreet, tenant.",
    ),
    "an unknown key of a field": (
        with_kinds("deal: {fields: {name: {propstreet_field: x}}}"),
        "acme.yaml:7: pairs[0].kinds.deal.fields.name.propstreet_field: unknown key 'propstreet_field'. "
        "Known: conflict, crm_field, policy, values.",
    ),
    "a missing key": (
        "propstreet: {}\npairs: [{name: x}]\n",
        "acme.yaml:2: pairs[0].connector: connector is missing. Add it: the connector by name: hubspot, salesforce.",
    ),
    "an inline secret": (
        MINIMAL.replace("{file: /run/secrets/hubspot}", "pat-na1-1234"),
        "acme.yaml:5: pairs[0].auth.access_token: a secret must not stand in the file. "
        "Write {env: NAME} or {file: PATH}.",
    ),
    "a misspelt reference": (
        MINIMAL.replace("file:", "flie:"),
        "acme.yaml:5: pairs[0].auth.access_token: unknown key 'flie'; did you mean 'file'? "
        "Write {env: NAME} or {file: PATH}.",
    ),
    "two references": (
        MINIMAL.replace("{env: PS_ID}", "{env: PS_ID, file: x}"),
        "acme.yaml:2: propstreet.auth.client_id: a secret has one place, an environment variable or a file. "
        "Write {env: NAME} or {file: PATH}.",
    ),
    "no reference": (
        MINIMAL.replace("{env: PS_ID}", ""),
        "acme.yaml:2: propstreet.auth.client_id: has no value. Give it one, or leave the key out.",
    ),
    "a variable that is none": (
        MINIMAL.replace("PS_ID", "ps-id-0815"),
        "acme.yaml:2: propstreet.auth.client_id: this is not the name of an environment variable. "
        "Write {env: NAME} or {file: PATH}.",
    ),
    "an unknown kind": (
        with_kinds("contacts: {}"),
        "acme.yaml:7: pairs[0].kinds.contacts: unknown key 'contacts'; did you mean 'contact'? "
        "Known: company, contact, deal, deal_contact, employment.",
    ),
    "an unknown word for a kind": (
        with_kinds("contact: of"),
        "acme.yaml:7: pairs[0].kinds.contact: 'of' says nothing about a kind. Write off, or keys below it.",
    ),
    "an unknown field": (
        with_kinds("contact: {fields: {fone: both}}"),
        "acme.yaml:7: pairs[0].kinds.contact.fields.fone: unknown field of contact 'fone'; did you mean 'phone'? "
        "Known: first_name, last_name, email, other_emails, phone, linkedin, language, strategy, tags.",
    ),
    "an unknown policy": (
        with_kinds("contact: {fields: {phone: to_cmr}}"),
        "acme.yaml:7: pairs[0].kinds.contact.fields.phone: unknown word 'to_cmr'; did you mean 'to_crm'? "
        "Known: both, to_crm, to_propstreet, if_empty, off.",
    ),
    "an unknown winner": (
        with_kinds("contact: {conflict: latest}"),
        "acme.yaml:7: pairs[0].kinds.contact.conflict: unknown word 'latest'. Known: newest, propstreet, crm, hold.",
    ),
    "an unknown stage": (
        with_kinds("deal: {stages: {proposal: [none, publishd]}}"),
        "acme.yaml:7: pairs[0].kinds.deal.stages.proposal[1]: unknown Propstreet stage 'publishd'; "
        f"did you mean 'published'? Known: {STAGES}.",
    ),
    "one stage under two": (
        with_kinds("deal: {stages: {proposal: [none, won], Closed Won: [won]}}"),
        "acme.yaml:7: pairs[0].kinds.deal.stages[\"Closed Won\"]: 'won' stands under 'proposal' already. "
        "Keep it under one of them.",
    ),
    "no stages": (
        with_kinds("deal: {stages: {proposal: []}}"),
        "acme.yaml:7: pairs[0].kinds.deal.stages.proposal: is empty. Name at least one, or leave the key out.",
    ),
    "an unknown classification": (
        with_kinds("deal_contact: {labels: {biddr: Bidder}}"),
        "acme.yaml:7: pairs[0].kinds.deal_contact.labels.biddr: unknown classification 'biddr'; did you mean 'bidder'? "
        "Known: not_contacted, contacted, interested, not_interested, bidder.",
    ),
    "one label for two": (
        with_kinds("deal_contact: {labels: {bidder: Hot, interested: hot}}"),
        "acme.yaml:7: pairs[0].kinds.deal_contact.labels.interested: 'hot' stands under 'bidder' already. "
        "Keep it under one of them.",
    ),
    "a key of another kind": (
        with_kinds("contact: {pipeline: x}"),
        "acme.yaml:7: pairs[0].kinds.contact.pipeline: pipeline is for deal only. Move it to kinds.deal.",
    ),
    "a webhook's secret in the file": (
        with_pair("webhooks: {secret: whsec_hunter2}"),
        "acme.yaml:6: pairs[0].webhooks.secret: a secret must not stand in the file. "
        "Write {env: NAME} or {file: PATH}.",
    ),
    "a webhook's secret in place of the block": (
        with_pair("webhooks: whsec_hunter2"),
        "acme.yaml:6: pairs[0].webhooks: expected keys with values, found text. Write KEY: VALUE lines below it.",
    ),
    "webhooks without a secret": (
        with_pair("webhooks: {}"),
        "acme.yaml:6: pairs[0].webhooks: webhooks need either a secret or secrets. Write secret: {file: PATH}.",
    ),
    "webhooks with a secret and secrets": (
        with_pair("webhooks: {secret: {env: A}, secrets: [{env: B}]}"),
        "acme.yaml:6: pairs[0].webhooks: webhooks need either a secret or secrets. Write secret: {file: PATH}.",
    ),
    "an empty filter": (
        with_kinds("contact: {only_when: {}}"),
        "acme.yaml:7: pairs[0].kinds.contact.only_when: is empty. Name at least one, or leave the key out.",
    ),
    "neither a flag nor a filter": (
        with_kinds("deal: {create: {in_propstreet: sometimes}}"),
        "acme.yaml:7: pairs[0].kinds.deal.create.in_propstreet: expected true or false, found text. "
        "Write true or false.",
    ),
    "a duration without a unit": (
        with_pair("every: 30"),
        "acme.yaml:6: pairs[0].every: 30 has no unit. Write 30s, 30m, 30h or 30d.",
    ),
    "a duration that is none": (
        with_pair("every: soon"),
        "acme.yaml:6: pairs[0].every: 'soon' is not a duration. Write a number and its unit: 30s, 5m, 1h or 1d.",
    ),
    "a duration of nothing": (
        MINIMAL + "compare_every: 0s\n",
        "acme.yaml:6: compare_every: '0s' is not a duration. Write a number and its unit: 30s, 5m, 1h or 1d.",
    ),
    "a number out of range": (
        with_pair("share_of_quota: 0"),
        "acme.yaml:6: pairs[0].share_of_quota: '0' is out of range. Write a number that is more than 0.",
    ),
    "no number": (
        with_pair("visits: many"),
        "acme.yaml:6: pairs[0].visits: expected a whole number, found text. Write a number without a fraction.",
    ),
    "a list for a text": (
        with_pair("base_url: [https://a.example]"),
        "acme.yaml:6: pairs[0].base_url: expected text, found a list. Write one text.",
    ),
    "text for a block": (
        with_kinds("deal: {deletes: archive}"),
        "acme.yaml:7: pairs[0].kinds.deal.deletes: expected keys with values, found text. "
        "Write KEY: VALUE lines below it.",
    ),
    "no URL": (
        with_pair("base_url: hubapi.com"),
        "acme.yaml:6: pairs[0].base_url: this is not an http or https URL. Write it like https://api.example.com.",
    ),
    "a password in a URL": (
        with_pair("base_url: https://me:hunter2@hubapi.com"),
        "acme.yaml:6: pairs[0].base_url: a URL must not carry a user or a password. "
        "Put credentials under auth, by reference.",
    ),
    "a bad name": (
        MINIMAL + "tenant: Nord Haus\n",
        "acme.yaml:6: tenant: 'Nord Haus' is not a name. Use a-z, 0-9 and -, at most 63, like nordhaus.",
    ),
    "a bad namespace": (
        with_pair("namespace: HubSpot"),
        "acme.yaml:6: pairs[0].namespace: 'HubSpot' is not a namespace. "
        "Use a-z, 0-9, - and _, at most 50, like hubspot.",
    ),
    "Propstreet's own namespace": (
        with_pair("namespace: propstreet"),
        "acme.yaml:6: pairs[0].namespace: the namespace propstreet is Propstreet's own. "
        "Set namespace to the CRM's name, like hubspot.",
    ),
    "two pairs with one name": (
        MINIMAL + "  - {connector: salesforce, name: hubspot}\n",
        "acme.yaml:6: pairs[1].name: pairs[0] has the name 'hubspot' too. Give one of them a name of its own.",
    ),
    "two pairs with one namespace": (
        MINIMAL + "  - {connector: hubspot, name: other}\n",
        "acme.yaml:6: pairs[1].namespace: pairs[0] has the namespace 'hubspot' too. "
        "Give one of them a namespace of its own.",
    ),
    "no pairs": (
        "propstreet: {}\npairs: []\n",
        "acme.yaml:2: pairs: is empty. Name at least one, or leave the key out.",
    ),
    "a key twice": (
        with_pair("every: 30s\nvisits: 1\nevery: 40s"),
        "acme.yaml:8: pairs[0].every: the key 'every' stands here twice, on lines 6 and 8. Keep one of them.",
    ),
    "a tab": (
        "propstreet:\n\tauth: {}\n",
        "acme.yaml:2: not readable as YAML at column 1: a tab. Use spaces, not tabs.",
    ),
    "an open bracket": (
        "pairs: [1, 2\ntenant: x\n",
        "acme.yaml:2: not readable as YAML at column 7: expected ',' or ']', but got ':'. "
        "Correct the line; put text with special characters in quotes.",
    ),
    "two documents": (
        "a: 1\n---\nb: 2\n",
        "acme.yaml:2: not readable as YAML at column 1: expected a single document in the stream, "
        "but found another document. Correct the line; put text with special characters in quotes.",
    ),
    "a control character": ("a: 1\nb: \x01\n", "acme.yaml:2: not readable as YAML: a control character. Remove it."),
    "a tag": (
        with_pair("base_url: !!python/name:os.system x"),
        "acme.yaml:6: pairs[0].base_url: a YAML tag (!) stands here. Remove it, or put the text in quotes.",
    ),
    "an alias of itself": (
        with_pair("options: &a {b: *a}"),
        "acme.yaml:6: pairs[0].options.b: aliases (*) make this endless or far too large. "
        "Write it out without aliases.",
    ),
    "an empty file": (
        "# nothing yet\n",
        "acme.yaml: the file is empty. Write the tenant's settings into it, or remove it.",
    ),
    "a list": ("- a\n", "acme.yaml:1: expected keys with values, found a list. Write KEY: VALUE lines."),
    "a pit": ("[" * 20_000, "acme.yaml: nested too deeply. A tenant file is a page or two of YAML."),
    "a giant": ("#" * 1_000_001, "acme.yaml: larger than 1000000 bytes. A tenant file is a page or two of YAML."),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_file_is_told_what_and_where_and_how_to_mend_it(tmp_path: Path, case: str) -> None:
    """One mistake gives one problem, with file, line, path, what is wrong and the fix."""
    text, said = REFUSED[case]
    assert problems_of(tmp_path, text) == [said]


def test_all_mistakes_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    """Nobody mends a file one error at a time."""
    found = problems_of(tmp_path, with_pair("every: 30\nvisits: 0\nkinds: {deal: {steges: {}, fields: {x: bth}}}"))
    assert [line.split(": ")[1] for line in found] == [
        "pairs[0].every",
        "pairs[0].visits",
        "pairs[0].kinds.deal.fields.x",
        "pairs[0].kinds.deal.fields.x",
        "pairs[0].kinds.deal.steges",
    ]


def test_bytes_that_are_no_text_are_a_problem(tmp_path: Path) -> None:
    """A file in another encoding is refused, not guessed at; a byte order mark is passed over."""
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "b.yaml").write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    found = load(tmp_path)
    assert [str(each) for each in found.problems] == [f"{tmp_path}/a.yaml: not text in UTF-8. Save it as UTF-8."]
    assert [each.tenant for each in found.tenants] == ["b"]


# --- folders ---------------------------------------------------------------------------------

MEND = (
    "Create config/tenants/NAME.yaml (see config/tenants/example.yaml.disabled), "
    "or name another folder with --config DIR or SYNCD_CONFIG."
)


def test_a_missing_folder_is_told_with_its_fix(tmp_path: Path) -> None:
    """No folder is a mistake of set-up, not a house without tenants."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "nowhere")
    assert str(caught.value) == f"{tmp_path}/nowhere: there is no such folder of tenants. {MEND}"


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    """A tenant's file in the folder's place is refused by name."""
    (tmp_path / "acme.yaml").write_text(MINIMAL)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "acme.yaml")
    assert str(caught.value) == (
        f"{tmp_path}/acme.yaml: cannot be read as a folder of tenants (Not a directory). {MEND}"
    )


def test_a_folder_without_tenants_is_told_with_its_fix(tmp_path: Path) -> None:
    """Hidden files, other endings and folders are no tenants."""
    (tmp_path / ".hidden.yaml").write_text(MINIMAL)
    (tmp_path / "example.yaml.disabled").write_text(MINIMAL)
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    assert str(caught.value) == f"{tmp_path}: no tenant (*.yaml) in this folder. {MEND}"


def test_a_mounted_config_map_is_read_once(tmp_path: Path) -> None:
    """Kubernetes links each file into a hidden folder: the links count, the folder does not."""
    hidden = tmp_path / "..2026_01_01"
    hidden.mkdir()
    (hidden / "acme.yml").write_text(MINIMAL)
    (tmp_path / "..data").symlink_to(hidden.name)
    (tmp_path / "acme.yml").symlink_to("..data/acme.yml")
    assert [(each.tenant, each.file) for each in load(tmp_path).tenants] == [("acme", tmp_path / "acme.yml")]


def test_a_broken_file_stops_no_other(tmp_path: Path) -> None:
    """The tenants of good files are there, and the broken one is named; only a check wants all right."""
    (tmp_path / "bad.yaml").write_text("a: [")
    (tmp_path / "gone.yaml").symlink_to("nowhere")
    found = read(tmp_path, MINIMAL)
    assert [each.tenant for each in found.tenants] == ["acme"]
    assert [each.file.name for each in found.problems] == ["bad.yaml", "gone.yaml"]
    assert found.require() is found
    with pytest.raises(ConfigError) as caught:
        found.require(is_strict=True)
    assert str(caught.value).splitlines() == [str(each) for each in found.problems]


def test_only_broken_files_are_an_error(tmp_path: Path) -> None:
    """With nothing to work for, requiring the configuration says every problem, one per line."""
    (tmp_path / "bad.yaml").write_text("- a\n")
    found = read(tmp_path, "- b\n")
    with pytest.raises(ConfigError) as caught:
        found.require()
    assert str(caught.value).splitlines() == [
        f"{tmp_path}/{name}:1: expected keys with values, found a list. Write KEY: VALUE lines."
        for name in ("acme.yaml", "bad.yaml")
    ]


def test_of_two_files_with_one_tenant_neither_is_used(tmp_path: Path) -> None:
    """Which one is meant is not for us to guess; each file is named, and a third goes on."""
    (tmp_path / "other.yaml").write_text(MINIMAL)
    (tmp_path / "twin.yaml").write_text("tenant: acme\n" + MINIMAL)
    found = read(tmp_path, MINIMAL)
    assert [each.tenant for each in found.tenants] == ["other"]
    assert [str(each) for each in found.problems] == [
        f"{tmp_path}/acme.yaml:1: tenant: the tenant 'acme' is also in {tmp_path}/twin.yaml. "
        "Give one of them another name, or remove it.",
        f"{tmp_path}/twin.yaml:1: tenant: the tenant 'acme' is also in {tmp_path}/acme.yaml. "
        "Give one of them another name, or remove it.",
    ]


def test_a_file_that_breaks_leaves_its_last_good_tenant(tmp_path: Path) -> None:
    """What was read before goes on until the file is right again or gone."""
    (tmp_path / "leaving.yaml").write_text(MINIMAL)
    (tmp_path / "staying.yaml").write_text(MINIMAL)
    before = read(tmp_path, MINIMAL)
    (tmp_path / "leaving.yaml").unlink()
    now = read(tmp_path, "a: [").after(before)
    assert [each.tenant for each in now.tenants] == ["acme", "staying"]
    assert [each.file.name for each in now.problems] == ["acme.yaml"]


def test_an_unknown_tenant_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    """A typo on the command line gets a suggestion, and the files that could not be read are named."""
    found = read(tmp_path, MINIMAL)
    assert found.tenant("acme") is found.tenants[0]
    (tmp_path / "bad.yaml").write_text("- a\n")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path).tenant("acne")
    assert str(caught.value).splitlines() == [
        "unknown tenant 'acne'; did you mean 'acme'? Known: acme.",
        f"{tmp_path}/bad.yaml:1: expected keys with values, found a list. Write KEY: VALUE lines.",
    ]


# --- secrets ---------------------------------------------------------------------------------


def test_a_secret_is_read_when_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rotated secret is seen without a restart; the line break at a file's end is not part of it."""
    place = tmp_path / "token"
    tenant = tenant_of(tmp_path, MINIMAL.replace("/run/secrets/hubspot", str(place)))
    file, variable = tenant.pairs[0].auth["access_token"], tenant.propstreet.auth["client_id"]
    for said in ("first", "second"):
        place.write_text(f"{said} \n")
        monkeypatch.setenv("PS_ID", said)
        assert (file.read(), variable.read()) == (f"{said} ", said)


def test_a_missing_secret_is_told_by_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset, empty, absent and unreadable secrets are each named, with the tenant's file and path."""
    place = tmp_path / "token"
    tenant = tenant_of(tmp_path, MINIMAL.replace("/run/secrets/hubspot", str(place)))
    monkeypatch.delenv("PS_ID", raising=False)
    monkeypatch.setenv("PS_SECRET", " ")
    where = f"{tmp_path}/acme.yaml"
    said = [
        f"{where}:2: propstreet.auth.client_id: the environment variable PS_ID is not set. Set it where syncd runs.",
        f"{where}:2: propstreet.auth.client_secret: the environment variable PS_SECRET is empty. Put the secret there.",
        f"{where}:5: pairs[0].auth.access_token: the file {place} is not there. Create it, readable by syncd.",
    ]
    assert [str(each) for each in missing_secrets(tenant)] == said
    with pytest.raises(ConfigError) as caught:
        tenant.propstreet.auth["client_id"].read()
    assert str(caught.value) == said[0]
    place.write_bytes(b"\xff\xfe")
    assert str(missing_secrets(tenant)[-1]) == (
        f"{where}:5: pairs[0].auth.access_token: the file {place} is not text in UTF-8. Write the secret as text."
    )
    place.unlink()
    place.mkdir()
    assert str(missing_secrets(tenant)[-1]) == (
        f"{where}:5: pairs[0].auth.access_token: the file {place} cannot be read (Is a directory). "
        "Create it, readable by syncd."
    )


def test_a_secret_that_is_there_is_no_problem_and_in_no_repr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading secrets leaves no trace of them in the settings."""
    (tmp_path / "token").write_text("hunter2")
    monkeypatch.setenv("PS_ID", "hunter2")
    monkeypatch.setenv("PS_SECRET", "hunter2")
    tenant = tenant_of(tmp_path, MINIMAL.replace("/run/secrets/hubspot", str(tmp_path / "token")))
    before = tenant.fingerprint(tenant.pairs[0])
    assert missing_secrets(tenant) == []
    assert [ref.read() for _, ref in tenant.secrets()] == ["hunter2"] * 3
    assert "hunter2" not in repr(tenant) + tenant.model_dump_json() + str(tenant)
    assert tenant.fingerprint(tenant.pairs[0]) == before


@pytest.mark.parametrize(
    "misplaced",
    [
        "hunter-2",
        "{access_token: hunter-2}",
        "{access_token: {env: hunter-2}}",
        "{access_token: {hunter-2: x}}",
        "{access_token: {hunter-2}}",
        "{access_token: {secret: hunter-2}}",
        "{access_token: [hunter-2]}",
        "{access_token: !hunter-2 x}",
        "{access_token: *hunter-2}",
        "{access_token: !hunter-2!x y}",
        '{access_token: "hunter-2}',
        "{hunter-2}",
        "{hunter-2: {env: X}}",
        "[hunter-2]",
        "{access_token: {env: X, file: hunter-2}}",
        "{access_token: {env: {hunter-2: x}}}",
        "{? [hunter-2] : x}",
    ],
)
def test_a_misplaced_secret_is_never_shown(tmp_path: Path, misplaced: str) -> None:
    """However a secret got into an auth block, the file is refused and no message shows it."""
    found = read(tmp_path, MINIMAL.replace("{access_token: {file: /run/secrets/hubspot}}", misplaced))
    assert found.tenants == ()
    assert found.problems
    assert "hunter" not in repr(found)


# --- the schema for editors ------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        MINIMAL,
        DESIGN,
        EXAMPLE,
        with_kinds(
            "company: off\ncontact: {create: {in_propstreet: no}}\ndeal:\nemployment: {deletes: {to_crm: ignore}}"
        ),
        with_kinds("deal: {pipeline: 12, stages: {a: won}, only_when: {x: [1, true, z]}, fields: {amount: off}}"),
        with_pair("base_url: http://127.0.0.1:8080/api\nlogin_url:\noptions: {page: 5}\nlimits: {creates: {share: 1}}"),
    ],
)
def test_the_schema_accepts_what_is_read(tmp_path: Path, text: str) -> None:
    """An editor underlines nothing in a file that syncd takes."""
    tenant_of(tmp_path, text)
    whole = json_schema()
    assert _accepts(whole, yaml.safe_load(text), whole)


@pytest.mark.parametrize(
    "case",
    [
        "an unknown key",
        "an unknown key of a field",
        "a missing key",
        "an inline secret",
        "a misspelt reference",
        "two references",
        "an unknown kind",
        "an unknown field",
        "an unknown policy",
        "an unknown stage",
        "an unknown classification",
        "a key of another kind",
        "an empty filter",
        "a duration without a unit",
        "a number out of range",
        "a bad name",
        "no pairs",
    ],
)
def test_the_schema_refuses_what_is_refused(case: str) -> None:
    """An editor underlines the usual mistakes while they are made."""
    whole = json_schema()
    assert not _accepts(whole, yaml.safe_load(REFUSED[case][0]), whole)


def test_every_key_of_the_schema_is_described() -> None:
    """An editor can tell what each key is for."""
    described = _keys(json_schema())
    assert [name for name, text in described.items() if not text] == []
    assert json_schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def _keys(whole: Mapping[str, object]) -> dict[str, str]:
    """Every key of every block, with its description."""
    found: dict[str, str] = {}
    for block in (whole, *_mapping(whole["$defs"]).values()):
        for name, key in _mapping(_mapping(block).get("properties", {})).items():
            found[name] = str(_mapping(key).get("description", ""))
    return found


def _mapping(said: object) -> Mapping[str, object]:
    assert isinstance(said, Mapping)
    return said


def _list(said: object) -> list[object]:
    assert isinstance(said, list)
    return said


def _accepts(schema: Mapping[str, object], said: object, whole: Mapping[str, object]) -> bool:
    """Whether a value fits a schema, for the words of JSON Schema that ours uses."""

    def fits(inner: object, value: object) -> bool:
        return _accepts(_mapping(inner), value, whole)

    for word, wanted in schema.items():
        match word:
            case "$ref":
                fine = fits(_mapping(whole["$defs"])[str(wanted).rpartition("/")[2]], said)
            case "type":
                fine = any(_is(str(each), said) for each in (wanted if isinstance(wanted, list) else [wanted]))
            case "enum":
                fine = any(said == each and type(said) is type(each) for each in _list(wanted))
            case "anyOf":
                fine = any(fits(each, said) for each in _list(wanted))
            case "oneOf":
                fine = sum(fits(each, said) for each in _list(wanted)) == 1
            case "pattern":
                fine = not isinstance(said, str) or re.search(str(wanted), said) is not None
            case "minLength" | "minItems" | "minProperties":
                fine = not isinstance(said, str | list | dict) or len(said) >= int(str(wanted))
            case "minimum" | "maximum" | "exclusiveMinimum":
                fine = not isinstance(said, int | float) or _within(word, said, float(str(wanted)))
            case "required":
                fine = not isinstance(said, dict) or all(name in said for name in _list(wanted))
            case "items":
                fine = not isinstance(said, list) or all(fits(wanted, each) for each in said)
            case "propertyNames":
                fine = not isinstance(said, dict) or all(fits(wanted, name) for name in said)
            case "properties":
                known = _mapping(wanted)
                fine = not isinstance(said, dict) or all(
                    fits(known[name], said[name]) for name in said if name in known
                )
            case "patternProperties":
                ((pattern, inner),) = _mapping(wanted).items()
                fine = not isinstance(said, dict) or all(fits(inner, said[k]) for k in said if re.search(pattern, k))
            case "additionalProperties":
                others = _others(schema, said)
                fine = not others if wanted is False else all(fits(wanted, each) for each in others)
            case "$schema" | "$defs" | "title" | "description" | "default":
                fine = True
            case _:
                raise AssertionError(f"the schema says {word}, which this check does not know")
        if not fine:
            return False
    return True


def _others(schema: Mapping[str, object], said: object) -> list[object]:
    known, patterns = _mapping(schema.get("properties", {})), _mapping(schema.get("patternProperties", {}))
    return [
        value
        for name, value in (said.items() if isinstance(said, dict) else ())
        if name not in known and not any(re.search(pattern, name) for pattern in patterns)
    ]


def _within(word: str, said: float, bound: float) -> bool:
    return {"minimum": said >= bound, "maximum": said <= bound, "exclusiveMinimum": said > bound}[word]


def _is(type_: str, said: object) -> bool:
    types: Mapping[str, type | tuple[type, ...]] = {
        "object": dict,
        "array": list,
        "string": str,
        "number": (int, float),
        "integer": int,
        "boolean": bool,
        "null": type(None),
    }
    return isinstance(said, types[type_]) and (type_ == "boolean" or not isinstance(said, bool))


# --- the service's own file ------------------------------------------------------------------


def test_the_environment_wins_over_the_service_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container is set up by its variables; one that is empty counts as unset."""
    file = tmp_path / "syncd.yaml"
    file.write_text("database_url: {file: /db}\ndata_dir: /here\ntenants: /tenants\nworkers: 2\nlog_level: debug\n")
    found = load_service(file)
    assert (found.data_dir, found.tenants, found.workers, found.log_level) == (
        Path("/here"),
        Path("/tenants"),
        2,
        "debug",
    )
    assert found.database_url is not None
    assert found.database_url.file == "/db"
    monkeypatch.setenv("SYNCD_DATABASE_URL", "postgresql://me:hunter2@db/syncd")
    monkeypatch.setenv("SYNCD_DATA_DIR", "/there")
    monkeypatch.setenv("SYNCD_CONFIG", "")
    found = load_service(file)
    assert (found.data_dir, found.tenants) == (Path("/there"), Path("/tenants"))
    assert found.database_url is not None
    assert found.database_url.read() == "postgresql://me:hunter2@db/syncd"
    assert "hunter2" not in repr(found)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("worker: 3\n", ":1: worker: unknown key 'worker'; did you mean 'workers'? "
         "Known: data_dir, database_url, grace, log_level, notify, retention, tenants, web, workers."),
        ("notify:\n  - url: https://hooks.example.com/secret\n", ":2: notify[0].url: a secret must not stand in the "
         "file. Write {env: NAME} or {file: PATH}."),
        ("notify:\n  - kinds: [halted]\n", ":2: notify[0]: a notice goes to a url or to a command. "
         "Write one of the two."),
        ("notify:\n  - command: [page]\n    kinds: [halt]\n", ":3: notify[0].kinds[0]: unknown kind of notice 'halt'; "
         "did you mean 'halted'? Known: unapproved, halted, failing, refused, resting, waiting, config, database."),
        ("database_url: postgresql://me:hunter2@db/x\n", ":1: database_url: a secret must not stand in the file. "
         "Write {env: NAME} or {file: PATH}."),
        ("workers: 0\n", ":1: workers: '0' is out of range. Write a number that is at least 1."),
        ("log_level: warn\n", ":1: log_level: unknown word 'warn'; did you mean 'warning'? "
         "Known: debug, info, warning, error."),
    ],
)  # fmt: skip
def test_a_wrong_service_file_is_told_how_to_mend_it(tmp_path: Path, text: str, said: str) -> None:
    """The service's file is as strict as a tenant's."""
    file = tmp_path / "syncd.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_service(file)
    assert str(caught.value) == f"{file}{said}"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("tokens: [{name: ops, role: admin, token: {env: A}}]", "web.sign_on.tokens[0].role: unknown word 'admin'"),
        ("tokens: [{name: ops, role: operator, token: hunter2}]", "a secret must not stand in the file."),
        ("tokens: [{role: operator, token: {env: A}}]", "web.sign_on.tokens[0].name: name is missing."),
        ("proxy: {trusted: 10.0.0.0/99}", "web.sign_on.proxy.trusted: '10.0.0.0/99' is not a network."),
        ("proxy: {}", "web.sign_on.proxy.trusted: trusted is missing."),
        ("proxy: {trusted: 10.0.0.0/8, user_header: 'X User'}", "'X User' is not the name of a header."),
    ],
)
def test_a_wrong_sign_on_is_told_how_to_mend_it(tmp_path: Path, line: str, said: str) -> None:
    """Who may see the page is written as strictly as the rest, and no token is repeated."""
    file = tmp_path / "syncd.yaml"
    file.write_text(f"web:\n  sign_on:\n    {line}\n")
    with pytest.raises(ConfigError) as caught:
        load_service(file)
    assert said in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_service_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    """Only the default file may be absent."""
    with pytest.raises(ConfigError, match=r"syncd\.yaml: cannot be read \(No such file or directory\)\."):
        load_service(tmp_path / "syncd.yaml")
