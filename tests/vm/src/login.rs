// SPDX-License-Identifier: BSD-2-Clause
//! From power-on to a shell, over the console: as a machine with a root shell there, or one where
//! root has to log in, as on an official image.

use crate::console::{Console, Stop};
use std::time::Duration;

/// Why a guest did not get on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// What the console saw.
    Stop(Stop),
    /// One line that says what to do.
    Text(String),
}

impl From<Stop> for Failure {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

impl From<&str> for Failure {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// What a console shows at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// It asks for a name.
    Login,
    /// It asks for a password.
    Password,
    /// Single-user mode asks which shell.
    WhichShell,
    /// A shell waits.
    Shell,
    /// The kernel found no root file system.
    MountRoot,
    /// The boot loader found nothing to boot.
    Loader,
}

/// The prompt at the end of a text, if it ends in one.
pub fn prompt(text: &str) -> Option<Prompt> {
    let line = text.rsplit('\n').next().unwrap_or("");
    let line = line.trim_end_matches('\0');
    let trimmed = line.trim_end();
    if trimmed.ends_with("login:") {
        Some(Prompt::Login)
    } else if trimmed.ends_with("Password:") {
        Some(Prompt::Password)
    } else if trimmed.ends_with("RETURN for /bin/sh:") {
        Some(Prompt::WhichShell)
    } else if text.contains("mountroot> ") {
        Some(Prompt::MountRoot)
    } else if trimmed == "OK" {
        Some(Prompt::Loader)
    } else if line.ends_with("# ") || line.ends_with("$ ") || line.ends_with("% ") {
        Some(Prompt::Shell)
    } else {
        None
    }
}

/// Gets from power-on to a shell.
pub fn log_in(console: &mut Console, silence: Duration) -> Result<(), Failure> {
    let mut answered = 0;
    console.wait(silence, |console| {
        let at = console.text.len();
        if at == answered {
            return None;
        }
        match prompt(&console.text)? {
            Prompt::Login => console.send("root"),
            Prompt::WhichShell => console.send(""),
            Prompt::Shell => return Some(Ok(())),
            Prompt::Password => {
                return Some(Err("root has a password on this image: take it away (passwd -d? pw usermod root -w none)"));
            }
            Prompt::MountRoot => return Some(Err("the kernel cannot mount its root: is root.img right for it?")),
            Prompt::Loader => return Some(Err("the boot loader stopped: is the image complete?")),
        }
        answered = at;
        None
    })??;
    console.send("exec /bin/sh");
    // The answer differs from the line as typed and echoed: a shell has run it.
    let from = console.text.len();
    let mut asked = std::time::Instant::now();
    let mut tries = 0;
    console.wait(silence, |console| {
        if console.text[from..].contains("vm-ready-42") {
            return Some(Ok(()));
        }
        if tries == 0 || asked.elapsed() > Duration::from_secs(10) {
            tries += 1;
            asked = std::time::Instant::now();
            console.send("echo vm-ready-$((40+2))");
        }
        (tries > 12).then_some(Err("the shell does not answer"))
    })??;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn prompts() {
        assert_eq!(prompt("FreeBSD/amd64 (x) (ttyu0)\n\nlogin: "), Some(Prompt::Login));
        assert_eq!(prompt("\nPassword:"), Some(Prompt::Password));
        assert_eq!(
            prompt("Enter full pathname of shell or RETURN for /bin/sh: "),
            Some(Prompt::WhichShell)
        );
        assert_eq!(prompt("x\n# "), Some(Prompt::Shell));
        assert_eq!(prompt("root@freebsd:~ # "), Some(Prompt::Shell));
        assert_eq!(prompt("\nmountroot> random: unblocking device.\n"), Some(Prompt::MountRoot));
        assert_eq!(prompt("booting...\n"), None);
        assert_eq!(prompt("#\n"), None);
    }

    /// A shell script in the place of a machine, and where that logs.
    fn machine(name: &str, script: &str) -> (Console, Scratch) {
        let folder = Scratch::new(name);
        let args = ["-c".to_owned(), script.to_owned()];
        let console = Console::start("sh", &args, &folder.join("log"), Duration::from_secs(20));
        (console.unwrap(), folder)
    }

    const SILENCE: Duration = Duration::from_millis(1500);

    #[test]
    fn logs_in_as_root() {
        let (mut console, _folder) = machine(
            "image",
            "echo Booting...; sleep 0.3; printf '\\nFreeBSD/amd64 (freebsd) (ttyu0)\\n\\nlogin: '; read name; \
             [ \"$name\" = root ] || exit 1; echo Welcome; printf 'root@freebsd:~ # '; exec sh",
        );
        assert_eq!(log_in(&mut console, SILENCE), Ok(()));
        assert!(console.text.contains("vm-ready-42"));
    }

    #[test]
    fn takes_a_shell_that_is_there() {
        let (mut console, _folder) = machine("prompt", "printf 'up\\n# '; exec sh");
        assert_eq!(log_in(&mut console, SILENCE), Ok(()));
    }

    #[test]
    fn says_what_to_do() {
        let why = |name, script| match log_in(&mut machine(name, script).0, SILENCE) {
            Err(Failure::Text(text)) => text,
            other => panic!("{other:?}"),
        };
        let password = "printf 'login: '; read name; printf 'Password:'; read word";
        assert!(why("password", password).contains("pw usermod root -w none"));
        assert!(why("mount", "printf 'mountroot> '; read line").contains("root.img"));
        assert!(why("loader", "printf 'can not load\\nOK '; read line").contains("complete"));
    }

    #[test]
    fn a_machine_that_never_prints() {
        let silent = log_in(&mut machine("silent", "sleep 10").0, Duration::from_millis(300));
        assert_eq!(silent, Err(Failure::Stop(Stop::Silent)));
    }
}
