"""The first tables.

Revision: 0001
Revises: none
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


FORWARD_ONLY = """
CREATE FUNCTION feed_goes_forward() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.watermark_at < OLD.watermark_at OR (NEW.watermark_at IS NULL AND OLD.watermark_at IS NOT NULL) THEN
        RAISE EXCEPTION 'a watermark never goes back (% % %)', OLD.pair, OLD.side, OLD.kind;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER feed_goes_forward BEFORE UPDATE ON feed FOR EACH ROW EXECUTE FUNCTION feed_goes_forward();
"""


def upgrade() -> None:
    op.create_table(
        "budget",
        sa.Column("credential", sa.Text(), nullable=False),
        sa.Column("bucket", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("slice", sa.Integer(), nullable=False),
        sa.Column("leased_until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("credential", "bucket", "holder", name=op.f("pk_budget")),
    )
    op.create_table(
        "change_log",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("pair", sa.Text(), nullable=False),
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("left_id", sa.Text(), nullable=True),
        sa.Column("right_id", sa.Text(), nullable=True),
        sa.Column("side", sa.Text(), nullable=False),
        sa.Column("verb", sa.Text(), nullable=False),
        sa.Column("field", sa.Text(), nullable=False),
        sa.Column("old", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("new", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_change_log")),
    )
    op.create_index("ix_change_log_at", "change_log", ["at"], unique=False)
    op.create_index("ix_change_log_left", "change_log", ["pair", "kind", "left_id"], unique=False)
    op.create_index("ix_change_log_right", "change_log", ["pair", "kind", "right_id"], unique=False)
    op.create_table(
        "conflict",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("pair", sa.Text(), nullable=False),
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("left_id", sa.Text(), nullable=False),
        sa.Column("right_id", sa.Text(), nullable=False),
        sa.Column("field", sa.Text(), nullable=False),
        sa.Column("base", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("left_value", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("right_value", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("decided", sa.Text(), nullable=True),
        sa.Column("winner", sa.Text(), nullable=True),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_conflict")),
    )
    op.create_index(
        "uq_conflict_open",
        "conflict",
        ["pair", "kind", "left_id", "right_id", "field"],
        unique=True,
        postgresql_where=sa.text("settled_at IS NULL"),
    )
    op.create_table(
        "tenant",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("config_hash", sa.Text(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_tenant")),
    )
    op.create_table(
        "pair",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("connector", sa.Text(), nullable=False),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("config_hash", sa.Text(), nullable=False),
        sa.Column("approved_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("halted_reason", sa.Text(), nullable=True),
        sa.Column("halted_plan", sa.Text(), nullable=True),
        sa.Column("is_waived", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("holder", sa.Text(), nullable=True),
        sa.Column("fence", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("leased_until", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["tenant"], ["tenant.name"], name=op.f("fk_pair_tenant")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pair")),
        sa.UniqueConstraint("tenant", "name", name=op.f("uq_pair_tenant_name")),
        sa.UniqueConstraint("tenant", "namespace", name=op.f("uq_pair_tenant_namespace")),
    )
    op.create_table(
        "connection",
        sa.Column("pair", sa.Text(), nullable=False),
        sa.Column("side", sa.Text(), nullable=False),
        sa.Column("connector", sa.Text(), nullable=False),
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("resting_until", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("side IN ('left', 'right')", name=op.f("ck_connection_side")),
        sa.ForeignKeyConstraint(["pair"], ["pair.id"], name=op.f("fk_connection_pair")),
        sa.PrimaryKeyConstraint("pair", "side", name=op.f("pk_connection")),
    )
    op.create_table(
        "feed",
        sa.Column("pair", sa.Text(), nullable=False),
        sa.Column("side", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("parent", sa.Text(), server_default="", nullable=False),
        sa.Column("watermark", sa.Text(), nullable=True),
        sa.Column("watermark_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("visited_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("swept_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("listed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deep_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cost", sa.Integer(), server_default="0", nullable=False),
        sa.CheckConstraint("side IN ('left', 'right')", name=op.f("ck_feed_side")),
        sa.ForeignKeyConstraint(["pair"], ["pair.id"], name=op.f("fk_feed_pair")),
        sa.PrimaryKeyConstraint("pair", "side", "kind", "parent", name=op.f("pk_feed")),
    )
    op.create_table(
        "link",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("pair", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("left_id", sa.Text(), nullable=False),
        sa.Column("left_parent", sa.Text(), nullable=True),
        sa.Column("right_id", sa.Text(), nullable=False),
        sa.Column("right_parent", sa.Text(), nullable=True),
        sa.Column(
            "left_base",
            postgresql.JSONB(none_as_null=True, astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column(
            "right_base",
            postgresql.JSONB(none_as_null=True, astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column(
            "left_facts",
            postgresql.JSONB(none_as_null=True, astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column(
            "right_facts",
            postgresql.JSONB(none_as_null=True, astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column("left_version", sa.Text(), nullable=True),
        sa.Column("right_version", sa.Text(), nullable=True),
        sa.Column("left_modified_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("right_modified_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("left_keys", sa.ARRAY(sa.Text()), server_default="{}", nullable=False),
        sa.Column("right_keys", sa.ARRAY(sa.Text()), server_default="{}", nullable=False),
        sa.Column("is_marked", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "settled",
            postgresql.JSONB(none_as_null=True, astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("linked_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "state IN ('in_step', 'pending', 'conflict', 'excluded', 'dead')", name=op.f("ck_link_state")
        ),
        sa.ForeignKeyConstraint(["pair"], ["pair.id"], name=op.f("fk_link_pair")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_link")),
        sa.UniqueConstraint("pair", "kind", "left_id", name=op.f("uq_link_pair_kind_left_id")),
        sa.UniqueConstraint("pair", "kind", "right_id", name=op.f("uq_link_pair_kind_right_id")),
    )
    op.create_index("ix_link_left_keys", "link", ["left_keys"], unique=False, postgresql_using="gin")
    op.create_index("ix_link_left_parent", "link", ["pair", "kind", "left_parent"], unique=False)
    op.create_index("ix_link_right_keys", "link", ["right_keys"], unique=False, postgresql_using="gin")
    op.create_index("ix_link_right_parent", "link", ["pair", "kind", "right_parent"], unique=False)
    op.create_index(
        "ix_link_state", "link", ["pair", "state"], unique=False, postgresql_where=sa.text("state <> 'in_step'")
    )
    op.create_index(
        "ix_link_unmarked", "link", ["pair", "kind", "id"], unique=False, postgresql_where=sa.text("NOT is_marked")
    )
    op.create_table(
        "match_review",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("pair", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("side", sa.Text(), nullable=False),
        sa.Column("record_id", sa.Text(), nullable=False),
        sa.Column("candidates", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.Column("answered_with", sa.Text(), nullable=True),
        sa.CheckConstraint("answer IN ('same', 'never', 'create')", name=op.f("ck_match_review_answer")),
        sa.CheckConstraint("side IN ('left', 'right')", name=op.f("ck_match_review_side")),
        sa.ForeignKeyConstraint(["pair"], ["pair.id"], name=op.f("fk_match_review_pair")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_match_review")),
    )
    op.create_index(
        "ix_match_review_answered",
        "match_review",
        ["pair", "kind", "record_id"],
        unique=False,
        postgresql_where=sa.text("answered_at IS NOT NULL"),
    )
    op.create_index(
        "uq_match_review_open",
        "match_review",
        ["pair", "kind", "side", "record_id"],
        unique=True,
        postgresql_where=sa.text("answered_at IS NULL"),
    )
    op.create_table(
        "run",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("pair", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "counts",
            postgresql.JSONB(none_as_null=True, astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column(
            "cost",
            postgresql.JSONB(none_as_null=True, astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column("message", sa.Text(), server_default="", nullable=False),
        sa.CheckConstraint("state IN ('running', 'done', 'halted', 'failed', 'abandoned')", name=op.f("ck_run_state")),
        sa.ForeignKeyConstraint(["pair"], ["pair.id"], name=op.f("fk_run_pair")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_run")),
    )
    op.create_index("ix_run_pair_started_at", "run", ["pair", "started_at"], unique=False)
    op.create_index("uq_run_running", "run", ["pair"], unique=True, postgresql_where=sa.text("state = 'running'"))
    op.create_table(
        "sighting",
        sa.Column("pair", sa.Text(), nullable=False),
        sa.Column("side", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("parent", sa.Text(), nullable=True),
        sa.Column(
            "values",
            postgresql.JSONB(none_as_null=True, astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column(
            "facts",
            postgresql.JSONB(none_as_null=True, astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column("mark", sa.Text(), nullable=True),
        sa.Column("keys", sa.ARRAY(sa.Text()), server_default="{}", nullable=False),
        sa.Column("version", sa.Text(), nullable=True),
        sa.Column("modified_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("is_deleted", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("is_linked", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("state", sa.Text(), server_default="new", nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("side IN ('left', 'right')", name=op.f("ck_sighting_side")),
        sa.CheckConstraint(
            "state IN ('new', 'waiting', 'excluded', 'review', 'dead', 'retired')", name=op.f("ck_sighting_state")
        ),
        sa.ForeignKeyConstraint(["pair"], ["pair.id"], name=op.f("fk_sighting_pair")),
        sa.PrimaryKeyConstraint("pair", "side", "kind", "id", name=op.f("pk_sighting")),
    )
    op.create_index("ix_sighting_keys", "sighting", ["keys"], unique=False, postgresql_using="gin")
    op.create_index(
        "ix_sighting_mark",
        "sighting",
        ["pair", "kind", "side", "mark"],
        unique=False,
        postgresql_where=sa.text("mark IS NOT NULL"),
    )
    op.create_index("ix_sighting_open", "sighting", ["pair", "kind", "side", "is_linked", "state", "id"], unique=False)
    op.create_index("ix_sighting_parent", "sighting", ["pair", "kind", "side", "parent"], unique=False)
    op.create_table(
        "plan",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("pair", sa.Text(), nullable=False),
        sa.Column("run", sa.Text(), nullable=True),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reasons", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'"), nullable=False),
        sa.Column("counts", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("made_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('open', 'applying', 'applied', 'discarded', 'refused')", name=op.f("ck_plan_state")
        ),
        sa.ForeignKeyConstraint(["pair"], ["pair.id"], name=op.f("fk_plan_pair")),
        sa.ForeignKeyConstraint(["run"], ["run.id"], name=op.f("fk_plan_run")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_plan")),
    )
    op.create_index("ix_plan_pair_state", "plan", ["pair", "state"], unique=False)
    op.create_table(
        "operation",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
        sa.Column("pair", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("verb", sa.Text(), nullable=False),
        sa.Column("side", sa.Text(), nullable=False),
        sa.Column("source_id", sa.Text(), nullable=True),
        sa.Column("target_id", sa.Text(), nullable=True),
        sa.Column("target_parent", sa.Text(), nullable=True),
        sa.Column("group_key", sa.Text(), server_default="", nullable=False),
        sa.Column(
            "steps",
            postgresql.JSONB(none_as_null=True, astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column(
            "refs",
            postgresql.JSONB(none_as_null=True, astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column(
            "before",
            postgresql.JSONB(none_as_null=True, astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column(
            "source",
            postgresql.JSONB(none_as_null=True, astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.Column("conflicts", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'"), nullable=False),
        sa.Column("why", sa.Text(), server_default="", nullable=False),
        sa.Column("precondition", sa.Text(), nullable=True),
        sa.Column("idempotency_key", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="planned", nullable=False),
        sa.Column("outcome", sa.Text(), server_default="", nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("side IN ('left', 'right')", name=op.f("ck_operation_side")),
        sa.CheckConstraint(
            "state IN ('planned', 'intended', 'sent', 'done', 'failed', 'dropped')", name=op.f("ck_operation_state")
        ),
        sa.CheckConstraint("verb IN ('create', 'update', 'delete', 'mark')", name=op.f("ck_operation_verb")),
        sa.ForeignKeyConstraint(["plan"], ["plan.id"], name=op.f("fk_operation_plan"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_operation")),
        sa.UniqueConstraint("idempotency_key", name=op.f("uq_operation_idempotency_key")),
    )
    op.create_index(
        "ix_operation_plan",
        "operation",
        ["plan", "state", "kind", "verb", "side", "group_key", "id"],
        unique=False,
    )
    op.create_index("ix_operation_source", "operation", ["plan", "kind", "source_id"], unique=False)
    op.create_index(
        "uq_operation_open",
        "operation",
        ["pair", "kind", "side", "target_id"],
        unique=True,
        postgresql_where=sa.text("state IN ('intended', 'sent') AND target_id IS NOT NULL"),
    )
    op.create_index(
        "uq_operation_open_create",
        "operation",
        ["pair", "kind", "side", "source_id"],
        unique=True,
        postgresql_where=sa.text("state IN ('intended', 'sent') AND verb = 'create'"),
    )
    op.execute(FORWARD_ONLY)


def downgrade() -> None:
    op.drop_index(
        "uq_operation_open_create",
        table_name="operation",
        postgresql_where=sa.text("state IN ('intended', 'sent') AND verb = 'create'"),
    )
    op.drop_index(
        "uq_operation_open",
        table_name="operation",
        postgresql_where=sa.text("state IN ('intended', 'sent') AND target_id IS NOT NULL"),
    )
    op.drop_index("ix_operation_source", table_name="operation")
    op.drop_index("ix_operation_plan", table_name="operation")
    op.drop_table("operation")
    op.drop_index("ix_plan_pair_state", table_name="plan")
    op.drop_table("plan")
    op.drop_index("ix_sighting_parent", table_name="sighting")
    op.drop_index("ix_sighting_open", table_name="sighting")
    op.drop_index("ix_sighting_mark", table_name="sighting", postgresql_where=sa.text("mark IS NOT NULL"))
    op.drop_index("ix_sighting_keys", table_name="sighting", postgresql_using="gin")
    op.drop_table("sighting")
    op.drop_index("uq_run_running", table_name="run", postgresql_where=sa.text("state = 'running'"))
    op.drop_index("ix_run_pair_started_at", table_name="run")
    op.drop_table("run")
    op.drop_index("uq_match_review_open", table_name="match_review", postgresql_where=sa.text("answered_at IS NULL"))
    op.drop_index(
        "ix_match_review_answered", table_name="match_review", postgresql_where=sa.text("answered_at IS NOT NULL")
    )
    op.drop_table("match_review")
    op.drop_index("ix_link_unmarked", table_name="link", postgresql_where=sa.text("NOT is_marked"))
    op.drop_index("ix_link_state", table_name="link", postgresql_where=sa.text("state <> 'in_step'"))
    op.drop_index("ix_link_right_parent", table_name="link")
    op.drop_index("ix_link_right_keys", table_name="link", postgresql_using="gin")
    op.drop_index("ix_link_left_parent", table_name="link")
    op.drop_index("ix_link_left_keys", table_name="link", postgresql_using="gin")
    op.drop_table("link")
    op.drop_table("feed")
    op.drop_table("connection")
    op.drop_table("pair")
    op.drop_table("tenant")
    op.drop_index("uq_conflict_open", table_name="conflict", postgresql_where=sa.text("settled_at IS NULL"))
    op.drop_table("conflict")
    op.drop_index("ix_change_log_right", table_name="change_log")
    op.drop_index("ix_change_log_left", table_name="change_log")
    op.drop_index("ix_change_log_at", table_name="change_log")
    op.drop_table("change_log")
    op.drop_table("budget")
    op.execute("DROP FUNCTION feed_goes_forward")
