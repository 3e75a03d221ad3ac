//! Sizes: what is asked for, in whole units of the fabric.

use tonic::Status;

use super::proto::v1::CapacityRange;

/// What the fabric counts in.
pub const GIB: u64 = 1 << 30;
/// Largest volume, 32 TiB: the fabric's limit.
pub const MAX: u64 = 32 << 40;
/// Size of a volume for which no size is asked.
pub const DEFAULT: u64 = GIB;

/// Bounds of a size in bytes, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// At least; nothing: nobody cares.
    pub required: Option<u64>,
    /// At most; nothing: nobody cares.
    pub limit: Option<u64>,
}

impl Range {
    /// Checks a range; a missing one says nothing.
    ///
    /// # Errors
    /// `OUT_OF_RANGE` for bounds that no size has.
    pub fn parse(range: Option<&CapacityRange>) -> Result<Self, Status> {
        let bound = |value: i64, name: &str| match u64::try_from(value) {
            Ok(0) => Ok(None),
            Ok(bytes) => Ok(Some(bytes)),
            Err(_) => Err(Status::out_of_range(format!(
                "capacity_range.{name}: {value} is negative"
            ))),
        };
        let Some(range) = range else {
            return Ok(Self {
                required: None,
                limit: None,
            });
        };
        let required = bound(range.required_bytes, "required_bytes")?;
        let limit = bound(range.limit_bytes, "limit_bytes")?;
        if let (Some(required), Some(limit)) = (required, limit)
            && required > limit
        {
            return Err(Status::out_of_range(format!(
                "capacity_range: {required} bytes are required and at most {limit} wanted"
            )));
        }
        Ok(Self { required, limit })
    }

    /// Whether a size is within it.
    #[must_use]
    pub fn contains(&self, bytes: u64) -> bool {
        self.required.is_none_or(|required| required <= bytes)
            && self.limit.is_none_or(|limit| bytes <= limit)
    }

    /// The smallest size within it that the fabric can make, and not below `at_least`.
    ///
    /// # Errors
    /// `OUT_OF_RANGE` when there is none.
    pub fn choose(&self, at_least: u64) -> Result<u64, Status> {
        let wanted = self.required.unwrap_or(0).max(at_least);
        let size = wanted
            .max(1)
            .checked_next_multiple_of(GIB)
            .filter(|size| *size <= MAX)
            .ok_or_else(|| {
                Status::out_of_range(format!(
                    "{wanted} bytes: a volume has 1 GiB to {} GiB",
                    MAX / GIB
                ))
            })?;
        match self.limit {
            Some(limit) if size > limit => Err(Status::out_of_range(format!(
                "at most {limit} bytes are wanted, and volumes have whole GiB: {size} would be the smallest that does"
            ))),
            _ => Ok(size),
        }
    }
}

/// A size as the wire has it.
#[must_use]
pub fn wire(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(required_bytes: i64, limit_bytes: i64) -> Result<Range, Status> {
        Range::parse(Some(&CapacityRange {
            required_bytes,
            limit_bytes,
        }))
    }

    #[test]
    fn sizes_are_whole_gib_within_the_bounds() {
        let choose = |required, limit| range(required, limit).unwrap().choose(0);
        let gib = GIB as i64;
        assert_eq!(choose(gib, 0).unwrap(), GIB);
        assert_eq!(choose(gib + 1, 0).unwrap(), 2 * GIB);
        assert_eq!(choose(0, 0).unwrap(), GIB);
        assert_eq!(choose(0, 5 * gib).unwrap(), GIB);
        assert_eq!(choose(gib + 1, 2 * gib).unwrap(), 2 * GIB);
        for (required, limit) in [
            (0, gib - 1),
            (gib + 1, 2 * gib - 1),
            (MAX as i64 + 1, 0),
            (i64::MAX, 0),
        ] {
            let status = choose(required, limit).unwrap_err();
            assert_eq!(status.code(), tonic::Code::OutOfRange, "{required} {limit}");
        }
        assert_eq!(range(0, 0).unwrap().choose(3 * GIB).unwrap(), 3 * GIB);
    }

    #[test]
    fn impossible_bounds() {
        for (required, limit) in [(2, 1), (-1, 0), (0, -1), (i64::MIN, i64::MIN)] {
            let status = range(required, limit).unwrap_err();
            assert_eq!(status.code(), tonic::Code::OutOfRange);
        }
        assert!(Range::parse(None).unwrap().contains(7));
        let both = range(5, 9).unwrap();
        assert!(both.contains(5) && both.contains(9) && !both.contains(4) && !both.contains(10));
    }
}
