// SPDX-License-Identifier: MIT OR Apache-2.0

//! curl, haproxy, nginx.

use std::fs;
use std::path::Path;

use super::super::programs::{Server, found, free_port};
use super::http::{Files, Site};
use super::nginx::{Nginx, PATHS};
use super::*;

/// An haproxy before a web server, and where it listens.
fn haproxy(place: &Place, directory: &Path, to: u16, options: &str) -> Option<(Server, u16)> {
    let mut command = server("haproxy")?;
    let port = free_port(place);
    let settings = format!(
        "global\n  nbthread 2\n  maxconn 200\n\
         defaults\n  mode http\n  timeout connect 30s\n  timeout client 30s\n  timeout server 30s\n{options}\
         listen all\n  bind 127.0.0.1:{port}\n  http-reuse always\n  server one 127.0.0.1:{to}\n"
    );
    let file = directory.join("haproxy.cfg");
    fs::write(&file, settings).unwrap();
    command.arg("-db").arg("-f").arg(file);
    Some((Server::start(place, &mut command, port), port))
}

#[test]
fn haproxy_before_nginx() {
    let Some(curl) = found("curl") else { return };
    let Some(place) = Place::new() else { return };
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let content = Content::new(seed);
    let files = Files::new(&content);
    for (name, args) in [
        ("without bpftk", None),
        ("redirected", Some(&[][..])),
        ("small bounds", Some(&["--max-queue", "64K", "--max-messages", "64"][..])),
    ] {
        let bpftk = args.map(|args| place.start(args));
        let Some(back) = Nginx::with_files(&place, &files.path("back"), &files.served) else {
            return;
        };
        let no_splice = "  no option splice-auto\n";
        let Some((_haproxy, port)) = haproxy(&place, files.directory.path(), back.port, no_splice)
        else {
            return;
        };
        let logs = [back.log.clone()];
        let site =
            Site { curl: curl.clone(), port, paths: &PATHS, files: &files.served, logs: &logs };
        let many = if args.is_some() { 18 } else { 6 };
        site.try_out(&place, &content, many, &mut random, name);
        if let Some(bpftk) = bpftk {
            ended(bpftk);
        }
    }
}

/// splice(2) finds nothing in a redirected socket, so that haproxy must not be redirected where it is told to use it: preflight says
/// so of haproxy, and of nobody else in the chain.
#[test]
fn preflight_names_an_haproxy_that_splices() {
    let Some(curl) = found("curl") else { return };
    let Some(place) = Place::without_bpftk() else { return };
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let content = Content::new(seed);
    let files = Files::new(&content);
    let Some(back) = Nginx::with_files(&place, &files.path("back"), &files.served) else { return };
    for (options, verdict) in [
        ("  option splice-request\n  option splice-response\n", "unsafe"),
        ("  no option splice-auto\n", "safe"),
    ] {
        let Some((haproxy, port)) = haproxy(&place, files.directory.path(), back.port, options)
        else {
            return;
        };
        let args = ["sockredir", "preflight", "-d", "300s", "--cgroup", place.path()];
        let preflight = Running::json(&args);
        let site =
            Site { curl: curl.clone(), port, paths: &PATHS, files: &files.served, logs: &[] };
        site.try_out(&place, &content, 8, &mut random, options);
        let run = preflight.stop();
        let rows: Vec<_> = run.json().into_iter().filter(|line| line["type"] == "row").collect();
        let row = rows.iter().find(|row| row["pid"] == haproxy.pid()).expect("haproxy has a row");
        assert_eq!(row["verdict"], verdict, "{row}");
        if verdict == "unsafe" {
            assert_eq!(row["reasons"], serde_json::json!(["splice"]), "{row}");
            assert_eq!(row["ports"].as_array().map(Vec::is_empty), Some(false), "{row}");
        }
        // nginx's workers and curl are in the cgroup as well.
        let others = rows.iter().filter(|row| row["pid"] != haproxy.pid());
        let names: Vec<&str> = others.clone().filter_map(|row| row["comm"].as_str()).collect();
        assert!(names.contains(&"nginx") && names.contains(&"curl"), "{}", run.stdout);
        for row in others {
            assert_eq!(row["verdict"], "safe", "{row}");
        }
    }
}
