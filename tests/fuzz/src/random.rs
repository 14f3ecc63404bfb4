//! Random inputs without a fuzzer: the seeds, changed.

/// What has been the edge of something before.
const EDGES: [&[u8]; 14] = [
    b"0",
    b"-1",
    b"65536",
    b"2147483648",
    b"4294967296",
    b"9007199254740993",
    b"18446744073709551615",
    b"1e400",
    b"\"",
    b"\n",
    b"\0",
    b"\x1b[2J",
    b"\xff",
    b"[[[[[[[[",
];

/// The input of this number: the same for the same seeds.
pub fn random(seeds: &[Vec<u8>], number: u64) -> Vec<u8> {
    let mut dice = Dice(number ^ 0x9e37_79b9_7f4a_7c15);
    let mut input = dice.choose(seeds).cloned().unwrap_or_default();
    for _ in 0..=dice.below(8) {
        let (from, to) = dice.range(input.len());
        match dice.below(7) {
            0 => drop(input.drain(from..to)),
            1 => input.truncate(from),
            2 => {
                let part = input.get(from..to).unwrap_or_default().to_vec();
                input.splice(from..from, part);
            }
            3 => {
                let other = dice.choose(seeds).cloned().unwrap_or_default();
                let (begin, end) = dice.range(other.len());
                input.splice(from..to, other.get(begin..end).unwrap_or_default().iter().copied());
            }
            4 => drop(input.splice(
                from..to,
                dice.choose(&EDGES).copied().unwrap_or_default().iter().copied(),
            )),
            5 => input.get_mut(from).into_iter().for_each(|byte| *byte ^= 1 << dice.below(8)),
            _ => input.insert(from, dice.byte()),
        }
    }
    input.truncate(LONGEST);
    input
}

/// No input is longer: the time of each grows with it.
const LONGEST: usize = 4096;

/// xorshift64*: enough to try things out, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`, or 0.
    fn below(&mut self, end: usize) -> usize {
        let number = usize::try_from(self.next() >> 33).unwrap_or_default();
        number.checked_rem(end).unwrap_or_default()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }

    fn choose<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        from.get(self.below(from.len()))
    }

    /// A part of something of this length, mostly a short one.
    fn range(&mut self, length: usize) -> (usize, usize) {
        let from = self.below(length + 1);
        let most = if self.below(4) == 0 { length } else { 16 };
        (from, (from + self.below(most + 1)).min(length))
    }
}
