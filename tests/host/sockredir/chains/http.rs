// SPDX-License-Identifier: MIT OR Apache-2.0

//! Downloads and uploads by curl, several over one connection.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use super::{Content, Place, assert_same, transfers};

/// How many a curl makes over its connection.
const A_CONNECTION: usize = 6;
const AT_A_TIME: usize = 3;

/// What a web server has, and room for all that the servers write.
pub(super) struct Files {
    pub(super) directory: tempfile::TempDir,
    pub(super) served: PathBuf,
}

impl Files {
    pub(super) fn new(content: &Content) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let served = directory.path().join("served");
        fs::create_dir(&served).unwrap();
        fs::write(served.join("content"), &content.0).unwrap();
        Self { directory, served }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// A web server behind something else.
pub(super) struct Site<'a> {
    pub(super) curl: PathBuf,
    /// Whom curl asks.
    pub(super) port: u16,
    /// The first parts of addresses, one of which is chosen for each transfer.
    pub(super) paths: &'a [&'a str],
    /// What the web server has, `content` in a file of this name. What is put there is here as well.
    pub(super) files: &'a Path,
    /// Told when something is wrong.
    pub(super) logs: &'a [PathBuf],
}

struct Transfer {
    up: bool,
    url: String,
    part: Range<usize>,
    /// What is sent or received, and where the server has it.
    ours: PathBuf,
    theirs: PathBuf,
}

impl Site<'_> {
    /// So many transfers, times `BPFTK_ROUNDS`.
    pub(super) fn try_out(
        &self,
        place: &Place,
        content: &Content,
        many: usize,
        random: &mut fastrand::Rng,
        name: &str,
    ) {
        let parts = content.parts(transfers(many), random);
        let each = parts.len().div_ceil(AT_A_TIME);
        let workers =
            parts.chunks(each).enumerate().map(|(worker, parts)| (worker, parts, random.fork()));
        thread::scope(|scope| {
            for (worker, parts, mut random) in workers {
                scope.spawn(move || {
                    for parts in parts.chunks(A_CONNECTION) {
                        self.connection(place, content, worker, parts, &mut random, name);
                    }
                });
            }
        });
    }

    fn connection(
        &self,
        place: &Place,
        content: &Content,
        worker: usize,
        parts: &[Range<usize>],
        random: &mut fastrand::Rng,
        name: &str,
    ) {
        let all: Vec<Transfer> = parts
            .iter()
            .enumerate()
            .map(|(number, part)| {
                let file = format!("{worker}-{number}");
                let path = self.paths[random.usize(..self.paths.len())];
                let up = random.bool();
                let wanted = if up { &file } else { "content" };
                Transfer {
                    up,
                    url: format!("http://127.0.0.1:{}{path}{wanted}", self.port),
                    part: part.clone(),
                    ours: self.files.parent().unwrap().join(format!("{file}.client")),
                    theirs: self.files.join(&file),
                }
            })
            .collect();
        let mut command = Command::new(&self.curl);
        // Else its status is that of the last.
        command.arg("--fail-early");
        for (number, transfer) in all.iter().enumerate() {
            if number > 0 {
                command.arg("--next");
            }
            command.args(["-sS", "--fail", "--max-time", "30"]);
            if transfer.up {
                fs::write(&transfer.ours, &content.0[transfer.part.clone()]).unwrap();
                command.arg("-T").arg(&transfer.ours).args(["-o", "/dev/null"]);
            } else {
                let range = format!("{}-{}", transfer.part.start, transfer.part.end - 1);
                command.args(["-r", &range]).arg("-o").arg(&transfer.ours);
            }
            command.arg(&transfer.url);
        }
        let output = place.run(|| command.stdin(Stdio::null()).output().expect("curl runs"));
        let about = |transfer: &Transfer| {
            let way = if transfer.up { "up" } else { "down" };
            format!("{name}, {} bytes {way}, {}", transfer.part.len(), transfer.url)
        };
        if !output.status.success() {
            let tried: Vec<String> = all.iter().map(about).collect();
            let logs: Vec<String> =
                self.logs.iter().map(|log| fs::read_to_string(log).unwrap_or_default()).collect();
            let told = String::from_utf8_lossy(&output.stderr);
            panic!("{}: {told}\n{tried:#?}\n{}", output.status, logs.concat());
        }
        for transfer in all {
            let arrived = if transfer.up { &transfer.theirs } else { &transfer.ours };
            let got = fs::read(arrived).expect("it arrived");
            assert_same(&got, &content.0[transfer.part.clone()], &about(&transfer));
            for file in [&transfer.ours, &transfer.theirs] {
                let _ = fs::remove_file(file);
            }
        }
    }
}
