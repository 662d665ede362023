//! Values of expressions. What is not there makes the value unknown, unless the other
//! side of `&&` or `||` decides alone.

use std::cmp::Ordering;
use std::fmt;

use super::{Comparison, Facts, Node, Test, Value};

/// An attribute is not there, or the values do not go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Untold;

type Told<'a> = Result<Value<'a>, Untold>;

impl Node {
    pub(super) fn value<'a>(&'a self, facts: &'a dyn Facts) -> Told<'a> {
        Ok(match self {
            Self::Literal(value) => value.clone(),
            Self::Attribute(attribute) => facts.get(attribute).ok_or(Untold)?,
            Self::Has(attribute) => Value::Bool(facts.get(attribute).is_some()),
            Self::Not(one) => Value::Bool(!one.bool(facts)?),
            Self::Minus(one) => match one.value(facts)? {
                Value::Int(number) => Value::Int(number.checked_neg().ok_or(Untold)?),
                Value::Double(number) => Value::Double(-number),
                _ => return Err(Untold),
            },
            Self::And(two) => Value::Bool(decided_by(false, two, facts)?),
            Self::Or(two) => Value::Bool(decided_by(true, two, facts)?),
            Self::Choose(three) => {
                let [condition, then, otherwise] = &**three;
                let chosen = if condition.bool(facts)? {
                    then
                } else {
                    otherwise
                };
                chosen.value(facts)?
            }
            Self::Compare(comparison, two) => {
                let order = order(&two[0].value(facts)?, &two[1].value(facts)?)?;
                Value::Bool(comparison.holds(order))
            }
            Self::Among(one, list) => {
                let one = one.value(facts)?;
                let mut found = false;
                for other in list {
                    found |= order(&one, &other.value(facts)?) == Ok(Ordering::Equal);
                }
                Value::Bool(found)
            }
            Self::Test(test, two) => match (two[0].value(facts)?, two[1].value(facts)?) {
                (Value::Text(text), Value::Text(part)) => Value::Bool(match test {
                    Test::Contains => text.contains(&*part),
                    Test::StartsWith => text.starts_with(&*part),
                    Test::EndsWith => text.ends_with(&*part),
                }),
                _ => return Err(Untold),
            },
            Self::Matches(one, regex) => match one.value(facts)? {
                Value::Text(text) => Value::Bool(regex.is_match(&text)),
                _ => return Err(Untold),
            },
            Self::String(one) => Value::Text(one.value(facts)?.to_string().into()),
        })
    }

    fn bool(&self, facts: &dyn Facts) -> Result<bool, Untold> {
        match self.value(facts)? {
            Value::Bool(value) => Ok(value),
            _ => Err(Untold),
        }
    }
}

/// `||` is true and `&&` is false as soon as one side is, whatever the other.
fn decided_by(value: bool, two: &[Node; 2], facts: &dyn Facts) -> Result<bool, Untold> {
    match two[0].bool(facts) {
        Ok(first) if first == value => Ok(value),
        first => match two[1].bool(facts) {
            Ok(second) if second == value => Ok(value),
            second => first.and(second),
        },
    }
}

fn order(one: &Value<'_>, other: &Value<'_>) -> Result<Ordering, Untold> {
    match (one, other) {
        (Value::Bool(one), Value::Bool(other)) => Ok(one.cmp(other)),
        (Value::Int(one), Value::Int(other)) => Ok(one.cmp(other)),
        (Value::Text(one), Value::Text(other)) => Ok(one.cmp(other)),
        (Value::Duration(one), Value::Duration(other)) => Ok(one.cmp(other)),
        (Value::Double(_), _) | (_, Value::Double(_)) => {
            let (one, other) = (one.number().ok_or(Untold)?, other.number().ok_or(Untold)?);
            one.partial_cmp(&other).ok_or(Untold)
        }
        _ => Err(Untold),
    }
}

impl Comparison {
    fn holds(self, order: Ordering) -> bool {
        match self {
            Self::Equal => order.is_eq(),
            Self::NotEqual => order.is_ne(),
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::GreaterOrEqual => order.is_ge(),
        }
    }
}

impl Value<'_> {
    fn number(&self) -> Option<f64> {
        match self {
            Self::Int(number) => Some(*number as f64),
            Self::Double(number) => Some(*number),
            _ => None,
        }
    }
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => value.fmt(f),
            Self::Int(number) => number.fmt(f),
            Self::Double(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
            Self::Duration(duration) => write!(f, "{}s", duration.as_secs_f64()),
        }
    }
}
