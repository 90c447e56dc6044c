// SPDX-License-Identifier: BSD-2-Clause
//! Who loads and unloads.

use crate::{Counter, WITH_VALUE, bad};
use core::ffi::CStr;
use guest::errno::{EBUSY, ENOSYS};
use guest::out::Text;
use guest::rng::Rng;
use guest::sysctl::served;
use guest::time::{ms_since, now, sleep_ms};
use guest::{Args, Result, aio, kld, println, sys};

/// The longest that a load lasts while nobody uses it.
const UNUSED_MS: u64 = 2_000;
/// So many refusals, and no new step begins.
const PATIENCE: u64 = 20;
/// An unload that is refused for so long is refused for good.
const REFUSED_MS: u64 = 60_000;
/// The most modules.
const MODULES: usize = 4;

/// Unloads what is loaded, and finds out whether there is AIO without it. Returns whether the engine is
/// to be there in the end.
///
/// # Errors
/// Those of kldunload(2).
pub fn begin() -> Result<bool> {
    let found = kld::find(c"aio_rs.ko").ok();
    if let Some(number) = found {
        kld::unload(number, false)?;
    }
    // A mode that is none: whoever is there says EINVAL.
    let alone = aio::listio(-1, 0, 0, 0) == Err(ENOSYS);
    Counter::Alone.put(u64::from(alone));
    Ok(found.is_some() || alone)
}

/// Loads and unloads as often as asked, or until somebody says that something is wrong; `restore`s the
/// first module then.
pub fn run(args: Args, restore: bool) -> i32 {
    let reloads = args.number(c"--reloads", 50);
    let limit = args.number(c"--seconds", 600) * 1000;
    let mut rng = Rng::new(args.number(c"--seed", 1) ^ 0x10ad);
    let mut modules = [c""; MODULES];
    let mut count = 0;
    for path in args.plain(WITH_VALUE).take(MODULES) {
        modules[count] = path;
        count += 1;
    }
    let (start, mut before, mut shown) = (now(), None, 0);
    for turn in 0..reloads {
        if Counter::Stop.get() != 0 || ms_since(start) > limit {
            break;
        }
        let Some(version) = once(&mut rng, modules[turn as usize % count]) else { return 1 };
        if before.is_some_and(|before: Version| before.as_bytes() != version.as_bytes()) {
            Counter::Upgrades.add(1);
        }
        before = Some(version);
        if (turn + 1) * 10 / reloads > shown {
            shown = (turn + 1) * 10 / reloads;
            println!("reload: {} of {reloads}, {} refused", turn + 1, Counter::Refused.get());
        }
    }
    if restore && let Err(error) = kld::load(modules[0]) {
        bad(format_args!("kldload in the end: {error}"));
        return 1;
    }
    0
}

/// What a module calls itself.
type Version = Text<64>;

/// One load and one unload; `None` when it did not go as it must.
fn once(rng: &mut Rng, path: &CStr) -> Option<Version> {
    let number = kld::load(path).inspect_err(|error| bad(format_args!("kldload: {error}"))).ok()?;
    let mut text = [0; 64];
    let length = sys::sysctlbyname("vfs.aio.rs.version", &mut text, &[])
        .inspect_err(|error| bad(format_args!("vfs.aio.rs.version: {error}")))
        .ok()?;
    let version = core::str::from_utf8(&text[..length.saturating_sub(1)]).unwrap_or("?");
    let loaded = now();
    let least = rng.below(40);
    let mut count = 0;
    while Counter::Stop.get() == 0 && (ms_since(loaded) < least || count == 0) {
        if ms_since(loaded) > UNUSED_MS {
            break;
        }
        sleep_ms(1);
        count = served().unwrap_or(0);
    }
    let asked = now();
    let mut refused = 0;
    loop {
        count = served().unwrap_or(count);
        // Without force the module is asked first whether it would refuse.
        match kld::unload(number, rng.below(3) > 0) {
            Ok(()) => break,
            Err(EBUSY) => {}
            Err(error) => {
                bad(format_args!("kldunload: {error}"));
                return None;
            }
        }
        Counter::Refused.add(1);
        refused += 1;
        if refused == PATIENCE {
            Counter::Calm.put(1);
        }
        if ms_since(asked) > REFUSED_MS {
            bad(format_args!("the unload was refused {refused} times"));
            return None;
        }
        sleep_ms(rng.below(4));
    }
    Counter::Calm.put(0);
    Counter::Reloads.add(1);
    Counter::Used.add(u64::from(count > 0));
    Counter::Served.add(count);
    sleep_ms(rng.below(20));
    Some(Version::of(format_args!("{version}")))
}
