//! What was made from what, from one compilation to the next: whoever compiles
//! a configuration anew finds what was made from parts that have not changed.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// A value by its identity: equal to nothing but itself. While it is held, no other
/// value takes its place in memory.
#[derive(Debug)]
pub(crate) struct Same<T>(Arc<T>);

impl<T> Same<T> {
    pub(crate) fn new(value: &Arc<T>) -> Self {
        Self(Arc::clone(value))
    }
}

impl<T> PartialEq for Same<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T> Eq for Same<T> {}

impl<T> Hash for Same<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

/// Whether both lists hold the very same values.
pub(crate) fn are_same<T>(one: &[Arc<T>], other: &[Arc<T>]) -> bool {
    one.len() == other.len()
        && one
            .iter()
            .zip(other)
            .all(|(one, other)| Arc::ptr_eq(one, other))
}

/// Results by what they were made from. What one compilation does not ask for is
/// forgotten with its [`end`](Self::end).
#[derive(Debug)]
pub(crate) struct Memo<K, V> {
    /// With the number of the compilation that asked last.
    known: HashMap<K, (V, u64)>,
    compilation: u64,
    made: usize,
}

impl<K, V> Default for Memo<K, V> {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
            compilation: 0,
            made: 0,
        }
    }
}

impl<K: Eq + Hash, V: Clone> Memo<K, V> {
    /// What was made from `parts` before, or is made now.
    pub(crate) fn get(&mut self, parts: K, make: impl FnOnce() -> V) -> V {
        let (value, asked) = self.known.entry(parts).or_insert_with(|| {
            self.made += 1;
            (make(), 0)
        });
        *asked = self.compilation;
        value.clone()
    }

    /// Ends a compilation: how many results it had to make.
    pub(crate) fn end(&mut self) -> usize {
        let current = self.compilation;
        self.known.retain(|_, (_, asked)| *asked == current);
        self.compilation += 1;
        std::mem::take(&mut self.made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_not_the_same() {
        let (one, other) = (Arc::new(1), Arc::new(1));
        assert!(Same::new(&one) == Same::new(&one));
        assert!(Same::new(&one) != Same::new(&other));
        let list = [one];
        assert!(are_same(&list, &list.clone()));
        assert!(!are_same(&list, &[other]));
        assert!(!are_same(&list, &[]));
    }

    #[test]
    fn what_is_not_asked_for_is_forgotten() {
        let mut memo = Memo::default();
        assert_eq!(
            [
                memo.get("a", || 1),
                memo.get("b", || 2),
                memo.get("a", || 3)
            ],
            [1, 2, 1]
        );
        assert_eq!(memo.end(), 2);
        assert_eq!(memo.get("a", || 4), 1);
        assert_eq!(memo.end(), 0);
        // Not asked for the last time.
        assert_eq!(memo.get("b", || 5), 5);
        assert_eq!(memo.end(), 1);
    }
}
