// SPDX-License-Identifier: MIT OR Apache-2.0

//! curl, nginx, nginx.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use super::super::programs::{Server, found, free_port};
use super::http::{Files, Site};
use super::*;

/// An nginx, and all that it writes.
pub(super) struct Nginx {
    pub(super) port: u16,
    pub(super) log: PathBuf,
    _server: Server,
}

impl Nginx {
    /// `directory` gets what it makes. `http` is the inside of that section, where `PORT` stands for a port that it gets.
    fn start(place: &Place, directory: &Path, http: &str) -> Option<Self> {
        let mut command = server("nginx")?;
        fs::create_dir_all(directory).unwrap();
        let here = directory.display();
        let port = free_port(place);
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("{what}_temp_path {here}/{what};\n"))
            .concat();
        let http = http.replace("PORT", &port.to_string());
        let settings = format!(
            "daemon off; worker_processes 2; user root root; pid {here}/pid; error_log {here}/log warn;\n\
             events {{ worker_connections 256; }}\n\
             http {{ access_log off; client_max_body_size 0;\n{temporary}{http}\n}}\n"
        );
        fs::write(directory.join("conf"), settings).unwrap();
        command.arg("-p").arg(directory).arg("-c").arg(directory.join("conf"));
        let server = Server::start(place, &mut command, port);
        Some(Self { port, log: directory.join("log"), _server: server })
    }

    /// One that has files, and takes them. A path says whether it is sendfile(2) that sends them.
    pub(super) fn with_files(place: &Place, directory: &Path, files: &Path) -> Option<Self> {
        let files = files.display();
        let http = format!(
            "server {{ listen 127.0.0.1:PORT; dav_methods PUT;\n\
             location /sendfile/ {{ alias {files}/; sendfile on; }}\n\
             location /written/ {{ alias {files}/; sendfile off; }} }}"
        );
        Self::start(place, directory, &http)
    }

    /// One that asks another, over connections that it keeps. A path says whether it waits for the whole.
    fn before(place: &Place, directory: &Path, other: u16) -> Option<Self> {
        let http = format!(
            "upstream other {{ server 127.0.0.1:{other}; keepalive 4; }}\n\
             proxy_http_version 1.1; proxy_set_header Connection '';\n\
             server {{ listen 127.0.0.1:PORT;\n\
             location /buffered/ {{ proxy_pass http://other/; }}\n\
             location /passed/ {{ proxy_buffering off; proxy_request_buffering off; proxy_pass http://other/; }} }}"
        );
        Self::start(place, directory, &http)
    }
}

pub(super) const PATHS: [&str; 2] = ["/sendfile/", "/written/"];

#[test]
fn nginx_before_nginx() {
    let Some(curl) = found("curl") else { return };
    let Some(place) = Place::new() else { return };
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let content = Content::new(seed);
    let files = Files::new(&content);

    // The servers are older than bpftk in one run, and keep connections that it does not know.
    for (name, args, running) in [
        ("without bpftk", None, true),
        ("redirected", Some(&[][..]), false),
        ("redirected, after TCP", Some(&[][..]), true),
        ("small bounds", Some(&["--max-queue", "64K", "--max-memory", "1M"][..]), false),
    ] {
        let start = |args: &[&str]| place.start(args);
        let earlier = if running { None } else { args.map(start) };
        let Some(back) = Nginx::with_files(&place, &files.path("back"), &files.served) else {
            return;
        };
        let Some(front) = Nginx::before(&place, &files.path("front"), back.port) else { return };
        let paths = ["/buffered", "/passed"]
            .map(|first| PATHS.map(|second| format!("{first}{second}")))
            .concat();
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        let logs = [front.log.clone(), back.log.clone()];
        let site = Site {
            curl: curl.clone(),
            port: front.port,
            paths: &paths,
            files: &files.served,
            logs: &logs,
        };
        if running && args.is_some() {
            site.try_out(&place, &content, 4, &mut random, "before bpftk");
        }
        let bpftk = earlier.or_else(|| args.map(start));
        let many = if args.is_some() { 18 } else { 6 };
        site.try_out(&place, &content, many, &mut random, name);
        if let Some(bpftk) = bpftk {
            ended(bpftk);
        }
    }
}

/// It ends while curl waits for an answer, and begins again: what is on its way stays whole.
#[test]
fn nginx_before_nginx_while_bpftk_comes_and_goes() {
    let Some(curl) = found("curl") else { return };
    let Some(place) = Place::new() else { return };
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let content = Content::new(seed);
    let files = Files::new(&content);
    let Some(back) = Nginx::with_files(&place, &files.path("back"), &files.served) else { return };
    let Some(front) = Nginx::before(&place, &files.path("front"), back.port) else { return };
    let logs = [front.log.clone(), back.log.clone()];
    let paths = ["/buffered/sendfile/", "/passed/written/"];
    let site = Site { curl, port: front.port, paths: &paths, files: &files.served, logs: &logs };
    let mut ends = random.fork();
    std::thread::scope(|scope| {
        let transfers =
            scope.spawn(|| site.try_out(&place, &content, 40, &mut random, "comes and goes"));
        while !transfers.is_finished() {
            let run = place.start(&["--max-queue", ["64K", "1M", "4M"][ends.usize(..3)]]);
            std::thread::sleep(std::time::Duration::from_millis(ends.u64(..300)));
            if ends.bool() {
                run.kill();
            } else {
                run.signal(Signal::SIGINT);
                assert_eq!(run.wait().summary()["lost"], 0);
            }
        }
    });
}
