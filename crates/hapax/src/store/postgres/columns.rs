//! Parameters of statements that are made for one row or for many: a column of
//! values, sent as an array, or its first value alone.

use tokio_postgres::types::ToSql;
use uuid::Uuid;

/// A column of values.
#[derive(Debug)]
pub(super) enum Column<'a> {
    Uuid(Vec<Uuid>),
    Small(Vec<i16>),
    Number(Vec<Option<i64>>),
    Text(Vec<Option<std::borrow::Cow<'a, str>>>),
    Bytes(Vec<&'a [u8]>),
    Bool(Vec<bool>),
}

impl Column<'_> {
    fn array(&self) -> &(dyn ToSql + Sync) {
        match self {
            Self::Uuid(values) => values,
            Self::Small(values) => values,
            Self::Number(values) => values,
            Self::Text(values) => values,
            Self::Bytes(values) => values,
            Self::Bool(values) => values,
        }
    }

    fn first(&self) -> &(dyn ToSql + Sync) {
        fn of<T: ToSql + Sync>(values: &[T]) -> &(dyn ToSql + Sync) {
            match values.first() {
                Some(value) => value,
                None => &None::<i64>,
            }
        }
        match self {
            Self::Uuid(values) => of(values),
            Self::Small(values) => of(values),
            Self::Number(values) => of(values),
            Self::Text(values) => of(values),
            Self::Bytes(values) => of(values),
            Self::Bool(values) => of(values),
        }
    }
}

/// The values as arrays, for many rows.
pub(super) fn arrays<'a>(columns: &'a [Column<'a>]) -> Vec<&'a (dyn ToSql + Sync)> {
    columns.iter().map(Column::array).collect()
}

/// The first values, for one row.
pub(super) fn firsts<'a>(columns: &'a [Column<'a>]) -> Vec<&'a (dyn ToSql + Sync)> {
    columns.iter().map(Column::first).collect()
}
