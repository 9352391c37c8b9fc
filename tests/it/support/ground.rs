//! What processes of one house stand on together: a private Redis, a database of their own, and a folder for sockets and data.

use super::{
    Program, Server,
    postgres::{self, Postgres, Sync},
};
use platform::testing::RedisServer;
use std::{path::PathBuf, process::Command};

pub struct Ground {
    pub redis: RedisServer,
    pub postgres: &'static Postgres,
    pub database: String,
    folder: tempfile::TempDir,
    /// What is set besides, for every process.
    pub settings: Vec<(String, String)>,
}

impl Ground {
    /// `None` after saying loudly what is skipped. The database has its schema.
    pub fn lay() -> Option<Self> {
        Self::on(postgres::shared()?)
    }

    /// On a PostgreSQL that nobody else uses, so that it may be killed.
    pub fn lay_alone() -> Option<Self> {
        Self::on(Box::leak(Box::new(Postgres::start(postgres::installed()?, Sync::Off)))) // its keeper ends it with this process
    }

    fn on(postgres: &'static Postgres) -> Option<Self> {
        let redis = RedisServer::start(&["--appendonly", "yes"])?;
        let database = postgres.database("template0");
        let ground = Self { redis, postgres, database, folder: tempfile::tempdir().unwrap(), settings: vec![] };
        let migrated = Command::new(env!("CARGO_BIN_EXE_quickcomm")).args(["db", "migrate"]).envs(ground.env(&[])).output().unwrap();
        assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
        Some(ground)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where a process of this name serves its modules.
    pub fn socket(&self, name: &str) -> String {
        format!("unix:{}", self.path(&format!("{name}.sock")).display())
    }

    /// Bus and record, and that `modules` are where processes of those names serve them.
    pub fn env(&self, modules: &[(&str, &[&str])]) -> Vec<(String, String)> {
        let mut env = vec![
            ("QUICKCOMM_BUS__KIND".to_owned(), "redis".to_owned()),
            ("QUICKCOMM_BUS__URL".into(), self.redis.url()),
            ("QUICKCOMM_API__RECORD__URL".into(), self.postgres.url("postgres", &self.database)),
        ];
        env.extend(self.settings.iter().cloned());
        for (module, at) in modules {
            let key = |name: &str| format!("QUICKCOMM_MODULES__{}__{name}", module.to_uppercase());
            let endpoints: Vec<String> = at.iter().map(|name| format!("{:?}", self.socket(name))).collect();
            env.extend([(key("MODE"), "remote".to_owned()), (key("ENDPOINTS"), format!("[{}]", endpoints.join(",")))]);
        }
        env
    }

    /// A process of this name and these roles, with a data folder of its own.
    pub fn serve(&self, name: &str, roles: &str, modules: &[(&str, &[&str])]) -> Server {
        self.serve_as(Program::Quickcomm, name, roles, modules)
    }

    /// The same of another program.
    pub fn serve_as(&self, program: Program, name: &str, roles: &str, modules: &[(&str, &[&str])]) -> Server {
        let env = self.env(modules);
        let env: Vec<(&str, &str)> = env.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let options = ["--roles", roles, "--grpc", &self.socket(name)];
        Server::try_start_as(program, &self.path(name), &options, &env).unwrap_or_else(|error| panic!("{name} did not start: {error}"))
    }

    /// The same, but the other modules are found in the registry, and the cache is on that Redis, too.
    pub fn serve_found(&self, name: &str, roles: &str, modules: &[&str]) -> Server {
        let mut env = self.env(&[]);
        let shared = [("DISCOVERY__KIND", "redis"), ("DISCOVERY__LEASE_MS", "2000"), ("CACHE__KIND", "redis")];
        env.extend(shared.map(|(key, value)| (format!("QUICKCOMM_{key}"), value.into())));
        env.extend(modules.iter().map(|module| (format!("QUICKCOMM_MODULES__{}__MODE", module.to_uppercase()), "remote".into())));
        let env: Vec<(&str, &str)> = env.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        Server::start(&self.path(name), &["--roles", roles, "--grpc", &self.socket(name)], &env)
    }

    /// What one statement prints on the house's database.
    pub fn sql(&self, statement: &str) -> String {
        self.postgres.sql(&self.database, statement)
    }
}
