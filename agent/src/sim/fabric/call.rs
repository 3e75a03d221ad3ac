//! One request, taken apart; and how a collection is filtered, sorted and paged.

use regex::RegexBuilder;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::answer::{Answer, ApiError, ApiVersion, Page, Verb};

/// Rows of a page unless the request says otherwise.
const PAGE_DEFAULT: usize = 100;
/// Most rows of a page.
const PAGE_MAX: usize = 1000;
/// Most memory that a pattern of a filter may take, in bytes: patterns come from anybody.
const PATTERN_BYTES_MAX: usize = 256 * 1024;

/// The tenant that everything else is below.
pub(super) const ROOT: &str = "/root";

/// Whose objects a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Scope {
    /// Those of all tenants; for reading.
    All,
    /// Those of one tenant.
    Tenant(String),
}

impl Scope {
    /// From the header `tenant`: `/root/x`, `/tenants/root/x` or `all`.
    pub(super) fn parse(text: Option<&str>) -> Self {
        let text = text.unwrap_or(ROOT).trim();
        if text == "all" {
            return Self::All;
        }
        let path = text.strip_prefix("/tenants").unwrap_or(text);
        let path = path.trim_matches('/');
        if path.is_empty() {
            return Self::Tenant(ROOT.to_owned());
        }
        Self::Tenant(format!("/{path}"))
    }

    /// The tenant that new objects belong to.
    pub(super) fn owner(&self) -> &str {
        match self {
            Self::All => ROOT,
            Self::Tenant(tenant) => tenant,
        }
    }

    /// Whether an object of `tenant` itself is meant.
    pub(super) fn holds(&self, tenant: &str) -> bool {
        match self {
            Self::All => true,
            Self::Tenant(own) => own == tenant,
        }
    }

    /// Whether an object of `tenant` is seen: own ones and those of tenants above.
    pub(super) fn sees(&self, tenant: &str) -> bool {
        match self {
            Self::All => true,
            Self::Tenant(own) => is_within(own, tenant),
        }
    }
}

/// Whether `tenant` is `above` or below it.
pub(super) fn is_within(tenant: &str, above: &str) -> bool {
    tenant
        .strip_prefix(above)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A request to the API proper.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) version: ApiVersion,
    pub(super) verb: Verb,
    /// Decoded segments behind the version.
    pub(super) segments: Vec<String>,
    /// The path behind the version, as it came.
    pub(super) path: String,
    /// Query pairs that have a value: an empty one means that nothing was said.
    pub(super) query: Vec<(String, String)>,
    /// The body; null when there was none.
    pub(super) body: Value,
    pub(super) scope: Scope,
}

impl Call {
    /// The value of a query parameter.
    pub(super) fn param(&self, name: &str) -> Option<&str> {
        let mut pairs = self.query.iter().rev();
        Some(pairs.find(|(key, _)| key == name)?.1.as_str())
    }

    /// The body as a type; no body is an empty object.
    pub(super) fn body<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        let body = match &self.body {
            Value::Null => Value::Object(Map::new()),
            body => body.clone(),
        };
        serde_path_to_error::deserialize(body).map_err(|error| {
            let path = error.path().to_string();
            let message = error.into_inner().to_string();
            ApiError::validation(vec![match path.as_str() {
                "." => message,
                path => format!("{path}: {message}"),
            }])
        })
    }

    /// Whether it is v2.2 or later.
    pub(super) fn is_v22(&self) -> bool {
        self.version >= ApiVersion::V22
    }

    /// A collection: rows that the filter lets through, sorted and cut to the page. `attributes` gives what
    /// filter and sort look at, `render` the whole row, which is made for the page alone.
    pub(super) fn list<T>(
        &self,
        items: impl IntoIterator<Item = T>,
        counts_all: bool,
        attributes: impl Fn(&T) -> Value,
        render: impl Fn(&T) -> Value,
    ) -> Result<Answer, ApiError> {
        let limit = self.number("limit", PAGE_DEFAULT, PAGE_MAX)?;
        let offset = self.number("offset", 0, usize::MAX)?;
        let filter = self.param("filter").map(Filter::parse).transpose()?;
        let sort = self.param("sort");
        let mut all = 0;
        let mut rows: Vec<(T, Value)> = Vec::new();
        for item in items {
            all += 1;
            let seen = if filter.is_some() || sort.is_some() {
                attributes(&item)
            } else {
                Value::Null
            };
            if filter.as_ref().is_none_or(|filter| filter.fits(&seen)) {
                rows.push((item, seen));
            }
        }
        if let Some(sort) = sort {
            rows.sort_by(|(_, a), (_, b)| compare(a.get(sort), b.get(sort)));
        }
        let total = if counts_all { all } else { rows.len() };
        let page = rows.iter().skip(offset).take(limit);
        Ok(Answer::List(Page {
            path: self.path.clone(),
            tenant: match &self.scope {
                Scope::All => "all".to_owned(),
                Scope::Tenant(tenant) => tenant.clone(),
            },
            limit,
            offset,
            total,
            rows: page.map(|(item, _)| render(item)).collect(),
        }))
    }

    /// A collection of rows that are made already.
    pub(super) fn rows(&self, rows: Vec<Value>, counts_all: bool) -> Result<Answer, ApiError> {
        self.list(rows, counts_all, Value::clone, Value::clone)
    }

    fn number(&self, name: &str, default: usize, max: usize) -> Result<usize, ApiError> {
        let Some(text) = self.param(name) else {
            return Ok(default);
        };
        match text.parse() {
            Ok(number) if number <= max => Ok(number),
            _ => Err(ApiError::validation(vec![format!(
                "{name}: {text:?} is not a number from 0 to {max}"
            )])),
        }
    }
}

/// A condition of the query language: `name=text` or `match(name,pattern)`.
enum Filter {
    Equals(String, String),
    Matches(String, regex::Regex),
}

impl Filter {
    fn parse(text: &str) -> Result<Self, ApiError> {
        let wrong = |why: &str| {
            ApiError::invalid(format!(
                "filter {text:?}: {why}; known are name=value and match(name,pattern)"
            ))
        };
        let call = text
            .strip_prefix("match(")
            .and_then(|rest| rest.strip_suffix(')'));
        if let Some((name, pattern)) = call.and_then(|inner| inner.split_once(',')) {
            // The pattern has to fit the whole text, which is what `.*` at both ends is for.
            let pattern = RegexBuilder::new(&format!("^(?:{pattern})$"))
                .size_limit(PATTERN_BYTES_MAX)
                .dfa_size_limit(PATTERN_BYTES_MAX)
                .build()
                .map_err(|_| wrong("the pattern is no regular expression"))?;
            return Ok(Self::Matches(name.to_owned(), pattern));
        }
        let equals = text
            .strip_prefix("eq(")
            .and_then(|rest| rest.strip_suffix(')'))
            .and_then(|inner| inner.split_once(','))
            .or_else(|| text.split_once('='));
        match equals {
            Some((name, value)) if is_word(name) => {
                Ok(Self::Equals(name.to_owned(), value.to_owned()))
            }
            _ => Err(wrong("it is no condition")),
        }
    }

    fn fits(&self, row: &Value) -> bool {
        let (Self::Equals(name, _) | Self::Matches(name, _)) = self;
        let fits = |text: &str| match self {
            Self::Equals(_, value) => text == value,
            Self::Matches(_, pattern) => pattern.is_match(text),
        };
        match row.get(name) {
            Some(Value::String(text)) => fits(text),
            Some(Value::Number(number)) => fits(&number.to_string()),
            Some(Value::Bool(value)) => fits(&value.to_string()),
            _ => false,
        }
    }
}

fn is_word(text: &str) -> bool {
    !text.is_empty()
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

fn compare(a: Option<&Value>, b: Option<&Value>) -> std::cmp::Ordering {
    match (a, b) {
        (Some(Value::Number(a)), Some(Value::Number(b))) => {
            let number = |n: &serde_json::Number| n.as_f64().unwrap_or_default();
            number(a).total_cmp(&number(b))
        }
        (Some(Value::String(a)), Some(Value::String(b))) => a.cmp(b),
        (Some(a), Some(b)) => a.to_string().cmp(&b.to_string()),
        (a, b) => a.is_some().cmp(&b.is_some()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn call(query: &[(&str, &str)]) -> Call {
        Call {
            version: ApiVersion::V22,
            verb: Verb::Read,
            segments: vec!["app_instances".to_owned()],
            path: "/app_instances".to_owned(),
            query: query
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            body: Value::Null,
            scope: Scope::parse(None),
        }
    }

    fn names(answer: Answer) -> (Vec<String>, usize) {
        let Answer::List(page) = answer else {
            panic!("a list")
        };
        let name = |row: &Value| row["name"].as_str().unwrap().to_owned();
        (page.rows.iter().map(name).collect(), page.total)
    }

    fn rows() -> Vec<Value> {
        (0..250)
            .map(|n| json!({"name": format!("pv-{n:03}"), "size": 250 - n}))
            .collect()
    }

    #[test]
    fn pages_are_exact() {
        let (page, total) = names(call(&[]).rows(rows(), false).unwrap());
        assert_eq!((page.len(), total), (100, 250));
        let last = call(&[("limit", "100"), ("offset", "200")]);
        let (page, total) = names(last.rows(rows(), false).unwrap());
        assert_eq!((page.len(), total), (50, 250));
        assert_eq!(page[0], "pv-200");
        let none = call(&[("limit", "0")]);
        assert_eq!(names(none.rows(rows(), false).unwrap()), (Vec::new(), 250));
        for wrong in [("limit", "1001"), ("limit", "-1"), ("offset", "x")] {
            assert_eq!(call(&[wrong]).rows(rows(), false).unwrap_err().http, 422);
        }
    }

    #[test]
    fn filters_and_sort_are_exact() {
        let matching = call(&[("filter", "match(name,.*-01.*)")]);
        let (page, total) = names(matching.rows(rows(), false).unwrap());
        assert_eq!((page.len(), total), (10, 10));
        // Below 3.3.0.0 the total forgets the filter.
        assert_eq!(names(matching.rows(rows(), true).unwrap()).1, 250);
        let whole = call(&[("filter", "match(name,-01)")]);
        assert_eq!(names(whole.rows(rows(), false).unwrap()).1, 0);
        let equal = call(&[("filter", "name=pv-007")]);
        assert_eq!(
            names(equal.rows(rows(), false).unwrap()).0,
            vec!["pv-007".to_owned()]
        );
        let sorted = call(&[("sort", "size"), ("limit", "1")]);
        assert_eq!(names(sorted.rows(rows(), false).unwrap()).0, ["pv-249"]);
        for wrong in ["match(name,*)", "nonsense", "match(name,(a{1000}){1000})"] {
            let error = call(&[("filter", wrong)]).rows(rows(), false).unwrap_err();
            assert_eq!((error.http, error.name), (400, "InvalidRequestError"));
        }
    }

    #[test]
    fn tenants_are_named_in_three_ways() {
        assert_eq!(Scope::parse(None).owner(), "/root");
        assert_eq!(Scope::parse(Some("/root/a")).owner(), "/root/a");
        assert_eq!(Scope::parse(Some("/tenants/root/a")).owner(), "/root/a");
        assert_eq!(Scope::parse(Some("all")), Scope::All);
        let below = Scope::parse(Some("/root/a"));
        assert!(below.sees("/root") && below.holds("/root/a") && !below.holds("/root"));
        assert!(!Scope::parse(Some("/root/ab")).sees("/root/a"));
    }
}
