// SPDX-License-Identifier: BSD-2-Clause
//! Pseudo-random numbers, the same on every run of the same seed.

/// A generator (SplitMix64: every seed is good, and a jump is an addition).
#[derive(Clone, Copy)]
pub struct Rng(u64);

impl Rng {
    /// Starts a generator.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A generator for a part of the work, independent of its siblings.
    pub fn fork(&mut self, part: u64) -> Self {
        Self(self.next() ^ part.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// The next number.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `limit`, which must not be 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        // The bias is far below what a test could see.
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Fills a buffer.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// Scrambles a word; two different words give two different results.
pub const fn mix(word: u64) -> u64 {
    let mut z = word;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_sequence() {
        let mut rng = Rng::new(1234567);
        assert_eq!(rng.next(), 6457827717110365317);
        assert_eq!(rng.next(), 3203168211198807973);
    }

    #[test]
    fn below_stays_below() {
        let mut rng = Rng::new(1);
        for limit in 1..100 {
            assert!(rng.below(limit) < limit);
        }
    }

    #[test]
    fn fill_handles_odd_lengths() {
        let mut bytes = [0; 11];
        Rng::new(5).fill(&mut bytes);
        assert_ne!(bytes[10], 0);
    }
}
