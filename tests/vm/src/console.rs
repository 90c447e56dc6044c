// SPDX-License-Identifier: BSD-2-Clause
//! A virtual machine's process and its serial console: what it prints is kept, logged and looked
//! through for panics; what it is to type is sent.

use crate::trouble;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Why waiting for the guest came to no good end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The kernel panicked.
    Panic,
    /// The machine's process ended.
    Ended,
    /// The time for the whole boot is up.
    Deadline,
    /// Nothing was printed for too long.
    Silent,
}

/// A running machine.
pub struct Console {
    child: Child,
    input: Option<ChildStdin>,
    output: Receiver<Vec<u8>>,
    log: File,
    /// All that was printed, without carriage returns.
    pub text: String,
    /// Text before this was looked through for panics already.
    scanned: usize,
    deadline: Instant,
    heard: Instant,
    ended: bool,
}

impl Console {
    /// Starts a machine. Its console goes to `log`, its errors to `log` with ".err" added.
    ///
    /// # Errors
    /// What is wrong and what to do about it.
    pub fn start(
        program: &str,
        args: &[String],
        log: &Path,
        limit: Duration,
    ) -> Result<Self, String> {
        let file = |path: &Path| {
            File::create(path).map_err(|error| format!("cannot write {}: {error}", path.display()))
        };
        let errors = file(&error_log(log))?;
        let mut child = Command::new(program)
            .args(args)
            // Throw-away overlays go where there is room for them.
            .env("TMPDIR", log.parent().unwrap_or(Path::new("/var/tmp")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => {
                    format!(
                        "no {program}: install it (QEMU on Debian: apt-get install qemu-system-x86)"
                    )
                }
                _ => format!("cannot start {program}: {error}"),
            })?;
        let input = child.stdin.take();
        let mut from = child.stdout.take().ok_or("the machine has no console")?;
        let (send, output) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut bytes) {
                if send.send(bytes[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            child,
            input,
            output,
            log: file(log)?,
            text: String::new(),
            scanned: 0,
            deadline: Instant::now() + limit,
            heard: Instant::now(),
            ended: false,
        })
    }

    /// Takes what was printed, waiting at most this long for something. Whether there was any.
    pub fn pump(&mut self, wait: Duration) -> bool {
        match self.output.recv_timeout(wait) {
            Ok(bytes) => {
                let _ = self.log.write_all(&bytes);
                self.text.extend(String::from_utf8_lossy(&bytes).chars().filter(|&c| c != '\r'));
                self.heard = Instant::now();
                true
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => {
                self.ended = true;
                false
            }
        }
    }

    /// Types a line.
    pub fn send(&mut self, line: &str) {
        if let Some(input) = &mut self.input {
            // A machine that has just ended shows in the next pump.
            let _ = input.write_all(line.as_bytes()).and_then(|()| input.write_all(b"\n"));
            let _ = input.flush();
        }
    }

    /// Gives the keyboard away, to a person.
    pub fn take_input(&mut self) -> Option<ChildStdin> {
        self.input.take()
    }

    /// Waits until `done` says so of all the text so far; it is asked after each piece of output
    /// and a few times a second.
    ///
    /// # Errors
    /// Why the wait ended otherwise.
    pub fn wait<T>(
        &mut self,
        silence: Duration,
        mut done: impl FnMut(&mut Self) -> Option<T>,
    ) -> Result<T, Stop> {
        self.heard = Instant::now();
        loop {
            self.pump(Duration::from_millis(200));
            // A panic's first line may come in pieces.
            let from = self.text[..self.scanned].rfind('\n').unwrap_or(0);
            if trouble::panic_at(&self.text[from..]).is_some() {
                return Err(Stop::Panic);
            }
            self.scanned = self.text.len();
            if let Some(result) = done(self) {
                return Ok(result);
            }
            if self.ended {
                return Err(Stop::Ended);
            }
            if Instant::now() > self.deadline {
                return Err(Stop::Deadline);
            }
            if self.heard.elapsed() > silence {
                return Err(Stop::Silent);
            }
        }
    }

    /// Listens on until the machine ends, `until` is printed after `from`, or the time is up.
    pub fn drain(&mut self, limit: Duration, from: usize, until: &[&str]) {
        let end = Instant::now() + limit;
        while !self.ended && Instant::now() < end {
            self.pump(Duration::from_millis(100));
            if until.iter().any(|text| self.text[from..].contains(text)) {
                return;
            }
        }
    }

    /// Whether the machine's process has ended.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Ends the machine, if it has not ended.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Where the machine's own errors go.
pub fn error_log(log: &Path) -> std::path::PathBuf {
    log.with_extension("err")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn no_such_program() {
        let folder = Scratch::new("no-such-program");
        let log = folder.join("log");
        let error =
            Console::start("no-such-qemu", &[], &log, Duration::from_secs(1)).err().unwrap();
        assert!(error.contains("install"), "{error}");
    }

    #[test]
    fn waits_and_sees_the_end_and_panics() {
        let folder = Scratch::new("console");
        let log = folder.join("log");
        let shell = |script: &str, limit| {
            let args = ["-c".to_owned(), script.to_owned()];
            Console::start("sh", &args, &log, Duration::from_millis(limit)).unwrap()
        };
        let silence = Duration::from_millis(700);
        let mut console = shell("echo hello; sleep 5", 10_000);
        let seen = console.wait(silence, |console| console.text.contains("hello").then_some(()));
        assert_eq!(seen, Ok(()));
        let never = console.wait(silence, |_| None::<()>);
        assert_eq!(never, Err(Stop::Silent));
        let mut console = shell("echo one", 10_000);
        assert_eq!(console.wait(silence, |_| None::<()>), Err(Stop::Ended));
        let mut console = shell("printf 'pan'; sleep 0.3; echo 'ic: oh'; sleep 5", 10_000);
        assert_eq!(console.wait(silence, |_| None::<()>), Err(Stop::Panic));
        let mut console = shell("while :; do echo x; sleep 0.1; done", 500);
        assert_eq!(console.wait(silence, |_| None::<()>), Err(Stop::Deadline));
    }
}
