//! What many token sequences have in common.

/// How many tokens at the start are the same in all `sequences`; 0 without any.
///
/// A causal text tower needs to compute these once, for example the prompt so
/// far in front of every candidate term. Leave the end token out of the
/// sequences unless all of them are truncated alike.
pub fn common_prefix<S: AsRef<[u32]>>(sequences: &[S]) -> usize {
    let Some((first, others)) = sequences.split_first() else { return 0 };
    others.iter().fold(first.as_ref().len(), |shared, other| {
        let pairs = first.as_ref()[..shared].iter().zip(other.as_ref());
        pairs.take_while(|(left, right)| left == right).count()
    })
}

#[cfg(test)]
mod tests {
    use super::common_prefix;

    #[test]
    fn counts_shared_tokens() {
        assert_eq!(common_prefix::<Vec<u32>>(&[]), 0);
        assert_eq!(common_prefix(&[[1, 2, 3]]), 3);
        assert_eq!(common_prefix(&[vec![1, 2, 3], vec![1, 2, 4], vec![1, 2]]), 2);
        assert_eq!(common_prefix(&[vec![1, 2], vec![], vec![1]]), 0);
    }
}
