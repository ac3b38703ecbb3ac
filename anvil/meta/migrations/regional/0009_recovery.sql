-- Recovery mode, and holds of several backups side by side. Of the settings:
--   recovery            there after a restore, until an operator ends it: nothing is unlinked meanwhile
--   backup_hold         of an operator's own backup; without `until_us`: until it is taken away
--   backup_hold/HOLDER  of a backup of Anvil's, with `until_us`: one that died holds nothing for longer than its lease
--   cluster_epoch       raised by each restore: who started under another one writes nothing any more (meta/sessions.py)
CREATE OR REPLACE FUNCTION collection_allowed(grace_us bigint) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    epoch jsonb := jsonb_build_array(
        (SELECT system_identifier::text FROM pg_control_system()),
        left(pg_walfile_name(pg_current_wal_lsn()), 8),
        (SELECT value FROM settings WHERE name = 'cluster_epoch'));
    since_us bigint;
BEGIN
    SELECT changed_us INTO since_us FROM settings WHERE name = 'gc_epoch' AND value = epoch;
    IF NOT FOUND THEN
        INSERT INTO settings (name, value) VALUES ('gc_epoch', epoch)
        ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value, changed_us = now_us()
        RETURNING changed_us INTO since_us;
    END IF;
    RETURN since_us <= now_us() - grace_us
        AND NOT EXISTS (SELECT FROM settings WHERE name = 'recovery')
        AND NOT EXISTS (SELECT FROM settings WHERE (name = 'backup_hold' OR starts_with(name, 'backup_hold/'))
                        AND coalesce((value ->> 'until_us')::bigint > now_us(), true));
END $$;
