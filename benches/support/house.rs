//! Processes that together are one QuickComm.

use super::{Server, cpu_seconds, resident_mb, scratch};
use tempfile::TempDir;

/// The first of its processes is the one that callers reach.
pub struct House {
    pub servers: Vec<Server>,
    /// Where its understanding can be asked directly.
    pub inference: String,
    _data: TempDir,
}

impl House {
    /// One process; `cores` as `taskset` takes them, all of them if `None`.
    pub fn whole(cores: Option<&str>, env: &[(&str, &str)]) -> Self {
        let data = scratch();
        let inference = format!("unix:{}", data.path().join("modules.sock").display());
        let folder = data.path().join("data");
        let server = Server::start_on(cores, &folder, &["--grpc", &inference], env);
        Self { servers: vec![server], inference, _data: data }
    }

    /// A process per module, over Unix sockets: api, audio, inference.
    pub fn apart(env: &[(&str, &str)]) -> Self {
        let data = scratch();
        let folder = |name: &str| data.path().join(name);
        let socket = |name: &str| format!("unix:{}", folder(name).join("module.sock").display());
        let host = |name: &str| {
            std::fs::create_dir_all(folder(name)).expect("the scratch folder is writable");
            Server::start_as(&folder(name), &["--roles", name, "--grpc", &socket(name)], env)
        };
        let (audio, inference) = (host("audio"), host("inference"));
        let endpoints = |name: &str| format!("[\"{}\"]", socket(name));
        let (of_audio, of_inference) = (endpoints("audio"), endpoints("inference"));
        let mut front = env.to_vec();
        front.extend([
            ("QUICKCOMM_MODULES__AUDIO__MODE", "remote"),
            ("QUICKCOMM_MODULES__AUDIO__ENDPOINTS", of_audio.as_str()),
            ("QUICKCOMM_MODULES__INFERENCE__MODE", "remote"),
            ("QUICKCOMM_MODULES__INFERENCE__ENDPOINTS", of_inference.as_str()),
        ]);
        let api = Server::start_as(&folder("api"), &["--roles", "api"], &front);
        let inference_at = socket("inference");
        Self { servers: vec![api, audio, inference], inference: inference_at, _data: data }
    }

    pub fn http(&self) -> &str {
        &self.servers[0].http
    }

    /// Seconds used so far by each process.
    pub fn cpu(&self) -> Vec<f64> {
        self.servers.iter().map(|server| cpu_seconds(server.pid())).collect()
    }

    pub fn resident_mb(&self) -> f64 {
        self.servers.iter().map(|server| resident_mb(server.pid())).sum()
    }
}
