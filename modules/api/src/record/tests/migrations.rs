//! Every step of PostgreSQL's schema works while the release before it reads and writes: nothing waits long for a lock, or holds one long.
//!
//! The rules are those of strong_migrations and Squawk, as far as our steps could break them; a table that the same step makes is nobody's yet.

use std::{collections::BTreeSet, fs, path::Path};

/// One step: its statements, and whether it runs in a transaction.
struct Step {
    name: String,
    statements: Vec<String>,
    in_transaction: bool,
}

impl Step {
    fn of(name: &str, sql: &str, in_transaction: bool) -> Self {
        let uncommented: String = sql.lines().map(|line| line.split("--").next().unwrap_or_default()).collect::<Vec<_>>().join(" ");
        let statements = uncommented.split(';').map(|s| s.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase());
        Self { name: name.into(), statements: statements.filter(|s| !s.is_empty()).collect(), in_transaction }
    }

    fn faults(&self) -> Vec<String> {
        let mut faults = vec![];
        let mut new: BTreeSet<&str> = BTreeSet::new();
        let mut unvalidated: BTreeSet<&str> = BTreeSet::new();
        if !self.statements.first().is_some_and(|s| s.starts_with("set local lock_timeout") || s.starts_with("set lock_timeout")) {
            faults.push("the first statement is no lock_timeout: a lock that is not given would hold up everybody behind it".to_owned());
        }
        for statement in &self.statements {
            let words: Vec<&str> = statement.split([' ', '(']).filter(|w| !w.is_empty()).collect();
            let after = |keys: &[&str]| words.windows(keys.len() + 1).find(|w| w[..keys.len()] == *keys).map(|w| w[keys.len()]);
            let concurrently = words.contains(&"concurrently");
            let mut fault = |text: &str| faults.push(format!("{text}: {statement}"));
            if let Some(table) = after(&["create", "table"]) {
                new.insert(table);
            }
            let table = after(&["alter", "table"]).or_else(|| after(&["on"]).filter(|_| words.contains(&"index"))).unwrap_or_default();
            let is_new = new.contains(table);
            if statement.starts_with("create") && words.contains(&"index") && !is_new && !concurrently {
                fault("an index on a table that is in use is made CONCURRENTLY");
            }
            if words.starts_with(&["drop", "index"]) && !concurrently {
                fault("an index is dropped CONCURRENTLY");
            }
            if concurrently && self.in_transaction {
                fault("CONCURRENTLY needs a step outside a transaction (metadata.toml: run_in_transaction = false)");
            }
            if statement.starts_with("alter table") && !is_new {
                if statement.contains(" type ") || statement.contains("set data type") {
                    fault("a change of type rewrites the table; expand, move, contract");
                }
                if statement.contains("add column") && statement.contains("generated always as") {
                    fault("a stored generated column rewrites the table");
                }
                if statement.contains("add column") && statement.contains("not null") && !statement.contains("default") {
                    fault("the release before does not fill this column; give it a default");
                }
                if statement.contains("set not null") {
                    fault("SET NOT NULL reads the whole table under a lock; add a NOT VALID check and validate it");
                }
                if statement.contains("rename") || statement.contains("drop column") {
                    fault("the release before still uses this column; contract one release later, raise OLDEST with it, and say so here");
                }
                if ["foreign key", "check"].iter().any(|kind| statement.contains(&format!(" {kind}"))) && !statement.contains("not valid") {
                    fault("a constraint on a table that is in use is added NOT VALID, then validated");
                }
                if statement.contains("add")
                    && (statement.contains(" unique ") || statement.contains("primary key"))
                    && !statement.contains("using index")
                {
                    fault("a unique constraint is added USING INDEX, made concurrently before");
                }
                if statement.contains("not valid") {
                    unvalidated.insert(after(&["constraint"]).unwrap_or_default());
                }
                if let Some(name) = after(&["validate", "constraint"]) {
                    if self.in_transaction && unvalidated.contains(name) {
                        fault(
                            "a constraint is validated in a later step: in the same transaction its lock is held while the table is read",
                        );
                    }
                    unvalidated.remove(name);
                }
            }
            if words.starts_with(&["drop", "table"]) || words.starts_with(&["truncate"]) {
                fault("the release before still uses this table");
            }
        }
        faults.into_iter().map(|fault| format!("{}: {fault}", self.name)).collect()
    }
}

fn steps() -> Vec<Step> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations/postgres");
    let mut folders: Vec<_> = fs::read_dir(root).expect("the steps are there").flatten().map(|e| e.path()).collect();
    folders.sort();
    let read = |folder: &std::path::PathBuf| {
        let sql = fs::read_to_string(folder.join("up.sql")).expect("a step has an up.sql");
        let apart = fs::read_to_string(folder.join("metadata.toml")).is_ok_and(|text| text.contains("run_in_transaction = false"));
        Step::of(&folder.file_name().expect("a name").to_string_lossy(), &sql, !apart)
    };
    folders.iter().map(read).collect()
}

#[test]
fn no_step_stops_the_release_before_it() {
    let faults: Vec<String> = steps().iter().flat_map(Step::faults).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn both_databases_have_the_same_tables() {
    let tables = |backend: &str| -> BTreeSet<String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations").join(backend);
        let mut found = BTreeSet::new();
        for folder in fs::read_dir(root).expect("the steps are there").flatten() {
            let sql = fs::read_to_string(folder.path().join("up.sql")).expect("a step has an up.sql").to_lowercase();
            found.extend(sql.split("create table ").skip(1).map(|rest| rest.split([' ', '(']).next().unwrap_or_default().to_owned()));
        }
        found
    };
    assert_eq!(tables("sqlite"), tables("postgres"));
}

#[test]
fn the_rules_find_what_they_are_for() {
    let check = |sql: &str, in_transaction: bool, says: &str| {
        let faults = Step::of("step", &format!("SET lock_timeout = '2s'; {sql}"), in_transaction).faults();
        match says {
            "" => assert!(faults.is_empty(), "{sql}: {faults:?}"),
            says => assert!(faults.iter().any(|f| f.contains(says)), "{sql}: {faults:?} does not say {says:?}"),
        }
    };
    assert!(Step::of("step", "CREATE TABLE a (b text)", true).faults()[0].contains("lock_timeout"));
    check("CREATE INDEX i ON segments (tenant_id)", true, "CONCURRENTLY");
    check("CREATE UNIQUE INDEX CONCURRENTLY i ON segments (tenant_id)", true, "run_in_transaction");
    check("CREATE INDEX CONCURRENTLY i ON segments (tenant_id)", false, "");
    check("CREATE TABLE a (b text); CREATE INDEX i ON a (b)", true, "");
    check("DROP INDEX segments_time", true, "dropped CONCURRENTLY");
    check("ALTER TABLE segments ALTER COLUMN seq TYPE numeric", true, "rewrites");
    check("ALTER TABLE segments ADD COLUMN n text NOT NULL", true, "default");
    check("ALTER TABLE segments ADD COLUMN n text NOT NULL DEFAULT ''", true, "");
    check("ALTER TABLE segments ADD COLUMN n text", true, "");
    check("ALTER TABLE segments ALTER COLUMN reason SET NOT NULL", true, "SET NOT NULL");
    check("ALTER TABLE segments ADD CONSTRAINT c CHECK (seq >= 0)", true, "NOT VALID");
    check("ALTER TABLE segments ADD CONSTRAINT c CHECK (seq >= 0) NOT VALID", true, "");
    check("ALTER TABLE segments VALIDATE CONSTRAINT c", true, "");
    check(
        "ALTER TABLE segments ADD CONSTRAINT c CHECK (seq >= 0) NOT VALID; ALTER TABLE segments VALIDATE CONSTRAINT c",
        true,
        "later step",
    );
    check("ALTER TABLE segments ADD CONSTRAINT c UNIQUE (seq)", true, "USING INDEX");
    check("ALTER TABLE segments RENAME COLUMN seq TO n", true, "release before");
    check("DROP TABLE segments", true, "release before");
}
