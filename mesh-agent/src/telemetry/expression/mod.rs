//! Conditions and values in CEL, as Istio's `Telemetry` has them: comparisons, `&&`, `||`, `!`,
//! `in`, `?:`, `has`, `string`, `duration` and the tests of texts, over Envoy's attributes.

mod attribute;
mod evaluate;
mod parse;

use std::borrow::Cow;
use std::time::Duration;

use regex::Regex;

pub use attribute::Attribute;

/// Longest text of an expression, in bytes.
const MAX_BYTES: usize = 4096;

/// Something that is computed for each request or connection.
#[derive(Clone, Debug)]
pub struct Expression {
    node: Node,
    text: String,
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

/// Why an expression cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpressionError {
    /// It is no expression.
    #[error("at character {at}: {reason}")]
    Malformed {
        /// From 1.
        at: usize,
        /// What is wrong.
        reason: String,
    },
    /// It may be one, but with something that is not known here.
    #[error("{0} is not known here")]
    Unknown(String),
}

/// What attributes are.
pub trait Facts {
    /// The attribute; `None` where there is none.
    fn get(&self, attribute: &Attribute) -> Option<Value<'_>>;
}

/// What an expression may be.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// True or false.
    Bool(bool),
    /// A number.
    Int(i64),
    /// A number with a fraction.
    Double(f64),
    /// A text.
    Text(Cow<'a, str>),
    /// A span of time.
    Duration(Duration),
}

#[derive(Clone, Debug)]
enum Node {
    Literal(Value<'static>),
    Attribute(Attribute),
    Has(Attribute),
    Not(Box<Self>),
    Minus(Box<Self>),
    And(Box<[Self; 2]>),
    Or(Box<[Self; 2]>),
    Choose(Box<[Self; 3]>),
    Compare(Comparison, Box<[Self; 2]>),
    Among(Box<Self>, Vec<Self>),
    Test(Test, Box<[Self; 2]>),
    Matches(Box<Self>, Regex),
    String(Box<Self>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// Of a text and another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    Contains,
    StartsWith,
    EndsWith,
}

impl Expression {
    /// Reads an expression.
    ///
    /// # Errors
    /// Where it is none, or names what is not known here.
    pub fn parse(text: &str) -> Result<Self, ExpressionError> {
        let node = parse::parse(text)?;
        let text = text.to_owned();
        Ok(Self { node, text })
    }

    /// Whether it is true; not, where it cannot be told, as in Envoy.
    pub fn holds(&self, facts: &dyn Facts) -> bool {
        matches!(self.node.value(facts), Ok(Value::Bool(true)))
    }

    /// Its value as a text; `None` where it cannot be told.
    pub fn text(&self, facts: &dyn Facts) -> Option<String> {
        self.node.value(facts).ok().map(|value| value.to_string())
    }

    /// Whether one of its attributes is like this.
    pub fn names(&self, is_like: &dyn Fn(&Attribute) -> bool) -> bool {
        self.node.names(is_like)
    }
}

impl Node {
    fn names(&self, is_like: &dyn Fn(&Attribute) -> bool) -> bool {
        match self {
            Self::Literal(_) => false,
            Self::Attribute(attribute) | Self::Has(attribute) => is_like(attribute),
            Self::Not(one) | Self::Minus(one) | Self::String(one) | Self::Matches(one, _) => {
                one.names(is_like)
            }
            Self::And(two) | Self::Or(two) | Self::Compare(_, two) | Self::Test(_, two) => {
                two.iter().any(|one| one.names(is_like))
            }
            Self::Choose(three) => three.iter().any(|one| one.names(is_like)),
            Self::Among(one, list) => {
                one.names(is_like) || list.iter().any(|one| one.names(is_like))
            }
        }
    }
}

#[cfg(test)]
mod tests;
