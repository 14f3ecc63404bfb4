//! `.if`, `.elif`, `.else` and `.endif`: decides which lines haproxy would see.
//!
//! Source: section 2.4 of haproxy's configuration manual, "Conditional blocks".
//! [`super::expression`] evaluates the conditions.

/// The deepest nesting of blocks in haproxy (2.6 to 3.5-dev5).
const MAX_DEPTH: usize = 99;

/// The blocks that are open at a line.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    open: Vec<Block>,
}

#[derive(Debug, Clone, Copy)]
struct Block {
    /// Whether the lines here count.
    active: bool,
    /// Whether a branch has been taken, or the whole block is inside a branch that was not.
    settled: bool,
    /// Whether `.else` has been seen.
    last: bool,
}

impl Blocks {
    /// Whether the lines here are skipped.
    pub(super) fn masked(&self) -> bool {
        self.open.last().is_some_and(|block| !block.active)
    }

    /// Handles a line whose first word begins with a dot. Gives `None` for a word that does not
    /// belong to a block. `evaluate` is called only for a condition that haproxy would evaluate
    /// too.
    pub(super) fn line<E>(
        &mut self,
        words: &[&[u8]],
        evaluate: impl FnOnce() -> Result<bool, E>,
    ) -> Result<Option<Result<(), &'static str>>, E> {
        let misplaced = |reason| Ok(Some(Err(reason)));
        let extra = words.get(1).is_some_and(|word| !word.is_empty());
        match words[0] {
            b".if" => {
                if self.open.len() >= MAX_DEPTH {
                    return misplaced("too many .if inside each other");
                }
                let active = !self.masked() && evaluate()?;
                let settled = active || self.masked();
                self.open.push(Block { active, settled, last: false });
            }
            b".elif" => match self.open.last_mut() {
                None => return misplaced(".elif without .if"),
                Some(block) if block.last => return misplaced(".elif after .else"),
                Some(block) if block.settled => block.active = false,
                Some(block) => {
                    block.active = evaluate()?;
                    block.settled = block.active;
                }
            },
            b".else" if extra => return misplaced(".else takes no word after it"),
            b".else" => match self.open.last_mut() {
                None => return misplaced(".else without .if"),
                Some(block) if block.last => return misplaced(".else after .else"),
                Some(block) => {
                    block.active = !block.settled;
                    block.last = true;
                }
            },
            b".endif" if extra => return misplaced(".endif takes no word after it"),
            b".endif" => {
                if self.open.pop().is_none() {
                    return misplaced(".endif without .if");
                }
            }
            _ => return Ok(None),
        }
        Ok(Some(Ok(())))
    }

    /// Whether a block is still open at the end of a file.
    pub(super) fn is_open(&self) -> bool {
        !self.open.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(lines: &[(&str, bool)]) -> Result<Vec<bool>, &'static str> {
        let mut blocks = Blocks::default();
        let mut masked = Vec::new();
        for &(line, condition) in lines {
            let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            let handled = blocks.line(&words, || Ok::<_, ()>(condition)).expect("evaluates");
            match handled {
                Some(result) => result?,
                None => masked.push(blocks.masked()),
            }
        }
        Ok(masked)
    }

    #[test]
    fn one_branch_of_a_block_is_taken() {
        let masked = run(&[
            (".if a", false),
            (".x", false),
            (".elif b", true),
            (".x", false),
            (".elif c", true),
            (".x", false),
            (".else", false),
            (".x", false),
            (".endif", false),
            (".x", false),
        ]);
        assert_eq!(masked, Ok(vec![true, false, true, true, false]));
        let nested = run(&[
            (".if a", false),
            (".if b", true),
            (".x", false),
            (".else", false),
            (".x", false),
            (".endif", false),
            (".else", false),
            (".x", false),
            (".endif", false),
        ]);
        assert_eq!(nested, Ok(vec![true, true, false]));
    }

    #[test]
    fn misplaced_words_are_named() {
        for lines in [
            &[(".else", false)][..],
            &[(".endif", false)],
            &[(".elif a", true)],
            &[(".if a", true), (".else", true), (".else", true)],
            &[(".if a", true), (".else", true), (".elif a", true)],
            &[(".if a", true), (".endif x", true)],
        ] {
            assert!(run(lines).is_err(), "{lines:?}");
        }
        assert!(run(&[(".if a", true); 99]).is_ok());
        assert!(run(&[(".if a", true); 100]).is_err());
    }
}
