//! Lines as an operator wants them: Envoy's commands (`%RESPONSE_CODE%`), in a text or in
//! the values of a JSON object (Istio's `accessLogFormat`).

use std::borrow::Cow;
use std::net::SocketAddr;

use serde_json::{Map, Value};

use super::facts::is_kept;
use super::{Encoding, Entry};
use crate::resource::format::{
    Command, FormatError, Part, TimePiece, Token, fields, start_time, tokens,
};
use crate::route::format::time;

const NONE: &str = "-";

/// How lines are written.
#[derive(Clone, Debug, PartialEq)]
pub enum Format {
    /// As Istio does by default.
    Default(Encoding),
    /// A text with commands.
    Text(Pieces),
    /// An object whose values have commands.
    Json(Vec<(String, Node)>),
}

/// A value of a JSON format.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// A text with commands.
    Text(Pieces),
    /// An object in the object.
    Object(Vec<(String, Node)>),
    /// As it stands.
    Constant(Value),
}

/// A text with commands.
pub type Pieces = Vec<Piece>;

/// A part of a text.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// As it stands.
    Text(String),
    /// A command, with the longest value.
    Command(Operator, Option<usize>),
}

/// What a command stands for.
#[derive(Clone, Debug, PartialEq)]
pub enum Operator {
    StartTime(Vec<TimePiece>),
    Request(String, Option<String>),
    RequestWithoutQuery(String, Option<String>),
    Response(String, Option<String>),
    Protocol,
    ResponseCode,
    ResponseCodeDetails,
    ResponseFlags,
    TerminationDetails,
    TransportFailureReason,
    BytesReceived,
    BytesSent,
    Duration,
    UpstreamHost(Part),
    UpstreamCluster,
    UpstreamLocal(Part),
    Destination(Part),
    Client(Part),
    RequestedServerName,
    RouteName,
    GrpcStatus,
    PeerIdentity,
    Hostname,
}

/// Why a format cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadFormat {
    /// A percent sign that begins no command.
    #[error("has a % that begins no command; a percent sign is written %%")]
    Malformed,
    /// A command that is not known here.
    #[error("%{0}% is not known here (docs/http.md lists what is)")]
    Unknown(String),
    /// It is no JSON object.
    #[error("must be a JSON object with the encoding JSON: {0}")]
    NotJson(String),
}

impl Format {
    /// Reads a format.
    ///
    /// # Errors
    /// Where it is none, or has a command that is not known here.
    pub fn parse(text: &str, encoding: Encoding) -> Result<Self, BadFormat> {
        match encoding {
            // Each line is ended anyhow.
            Encoding::Text => pieces(text.strip_suffix('\n').unwrap_or(text)).map(Self::Text),
            Encoding::Json => {
                let object: Map<String, Value> = serde_json::from_str(text)
                    .map_err(|error| BadFormat::NotJson(error.to_string()))?;
                object_of(object).map(Self::Json)
            }
        }
    }

    /// Whether header fields have to be kept until the end.
    pub fn needs_headers(&self) -> bool {
        match self {
            Self::Default(_) => false,
            Self::Text(pieces) => pieces.iter().any(Piece::needs_headers),
            Self::Json(object) => object.iter().any(|(_, node)| node.needs_headers()),
        }
    }

    /// Writes a line without its end.
    pub(super) fn write(&self, entry: &Entry<'_>, line: &mut Vec<u8>) {
        match self {
            Self::Default(Encoding::Text) => entry.text(line),
            Self::Default(Encoding::Json) => entry.json(line),
            Self::Text(pieces) => {
                for piece in pieces {
                    line.extend_from_slice(piece.text(entry).as_bytes());
                }
            }
            // Text and numbers always are JSON, and writing to a vector does not fail.
            Self::Json(object) => {
                let _ = serde_json::to_writer(line, &object_for(object, entry));
            }
        }
    }
}

fn object_of(object: Map<String, Value>) -> Result<Vec<(String, Node)>, BadFormat> {
    let node = |value| {
        Ok(match value {
            Value::String(text) => Node::Text(pieces(&text)?),
            Value::Object(object) => Node::Object(object_of(object)?),
            other => Node::Constant(other),
        })
    };
    let fields = object.into_iter();
    fields
        .map(|(name, value)| Ok((name, node(value)?)))
        .collect()
}

fn object_for(object: &[(String, Node)], entry: &Entry<'_>) -> Value {
    let fields = object.iter();
    Value::Object(
        fields
            .map(|(name, node)| (name.clone(), node.value(entry)))
            .collect(),
    )
}

impl Node {
    fn needs_headers(&self) -> bool {
        match self {
            Self::Text(pieces) => pieces.iter().any(Piece::needs_headers),
            Self::Object(object) => object.iter().any(|(_, node)| node.needs_headers()),
            Self::Constant(_) => false,
        }
    }

    /// A command alone keeps its type, and is null where there is nothing.
    fn value(&self, entry: &Entry<'_>) -> Value {
        match self {
            Self::Constant(value) => value.clone(),
            Self::Object(object) => object_for(object, entry),
            Self::Text(pieces) => match &**pieces {
                [Piece::Command(operator, limit)] => match operator.number(entry) {
                    Some(number) => number.into(),
                    None => operator
                        .text(entry)
                        .map_or(Value::Null, |text| cut(text, *limit).into()),
                },
                pieces => pieces
                    .iter()
                    .map(|piece| piece.text(entry))
                    .collect::<String>()
                    .into(),
            },
        }
    }
}

impl Piece {
    fn needs_headers(&self) -> bool {
        let Self::Command(
            Operator::Request(name, or)
            | Operator::RequestWithoutQuery(name, or)
            | Operator::Response(name, or),
            _,
        ) = self
        else {
            return false;
        };
        !is_kept(name) || or.as_deref().is_some_and(|or| !is_kept(or))
    }

    fn text<'e>(&'e self, entry: &'e Entry<'_>) -> Cow<'e, str> {
        match self {
            Self::Text(text) => text.into(),
            Self::Command(operator, limit) => match operator.number(entry) {
                Some(number) => number.to_string().into(),
                None => operator
                    .text(entry)
                    .map_or(NONE.into(), |text| cut(text, *limit)),
            },
        }
    }
}

/// No more characters than so many.
fn cut(text: Cow<'_, str>, limit: Option<usize>) -> Cow<'_, str> {
    match limit.and_then(|limit| text.char_indices().nth(limit)) {
        Some((end, _)) => text[..end].to_owned().into(),
        None => text,
    }
}

impl Operator {
    fn number(&self, entry: &Entry<'_>) -> Option<u64> {
        let port = |address: Option<SocketAddr>| address.map(|address| address.port().into());
        match self {
            Self::ResponseCode => Some(entry.response_code.into()),
            Self::BytesReceived => Some(entry.bytes_received),
            Self::BytesSent => Some(entry.bytes_sent),
            Self::Duration => Some(entry.duration.as_millis() as u64),
            Self::GrpcStatus => entry.grpc_status.map(u64::from),
            Self::UpstreamHost(Part::Port) => port(upstream(entry)),
            Self::UpstreamLocal(Part::Port) => port(entry.upstream_local_address),
            Self::Destination(Part::Port) => port(entry.downstream_local_address),
            Self::Client(Part::Port) => port(entry.downstream_remote_address),
            _ => None,
        }
    }

    fn text<'e>(&'e self, entry: &'e Entry<'_>) -> Option<Cow<'e, str>> {
        let one_word = |text: &str| text.replace([' ', '\n'], "_").into();
        let either =
            |find: &dyn Fn(&str) -> Option<Cow<'e, str>>, name: &str, or: &Option<String>| {
                find(name).or_else(|| find(or.as_deref()?))
            };
        match self {
            Self::StartTime(format) => Some(time(format, entry.start_time).into()),
            Self::Request(name, or) => either(&|name| entry.request_field(name), name, or),
            Self::RequestWithoutQuery(name, or) => {
                let path = either(&|name| entry.request_field(name), name, or)?;
                let end = path.find('?').unwrap_or(path.len());
                Some(path[..end].to_owned().into())
            }
            Self::Response(name, or) => either(&|name| entry.response_field(name), name, or),
            Self::Protocol => entry.protocol.map(Cow::from),
            // Not in quotes: blanks would make them several fields.
            Self::ResponseCodeDetails => entry.response_code_details.map(one_word),
            Self::TerminationDetails => entry.connection_termination_details.map(one_word),
            Self::TransportFailureReason => {
                let reason = entry.upstream_transport_failure_reason;
                reason.map(|reason| reason.replace(['"', '\n'], "'").into())
            }
            Self::ResponseFlags => Some(entry.response_flags.to_string().into()),
            Self::UpstreamHost(Part::All) => entry.upstream_host.map(Cow::from),
            Self::UpstreamHost(part) => of_address(upstream(entry), *part),
            Self::UpstreamCluster => entry.upstream_cluster.map(Cow::from),
            Self::UpstreamLocal(part) => of_address(entry.upstream_local_address, *part),
            Self::Destination(part) => of_address(entry.downstream_local_address, *part),
            Self::Client(part) => of_address(entry.downstream_remote_address, *part),
            Self::RequestedServerName => entry.requested_server_name.map(Cow::from),
            Self::RouteName => entry.route_name.map(Cow::from),
            Self::PeerIdentity => entry.peer_identity.map(|peer| peer.to_string().into()),
            Self::ResponseCode
            | Self::BytesReceived
            | Self::BytesSent
            | Self::Duration
            | Self::GrpcStatus => None,
            Self::Hostname => {
                let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
                Some(name.trim_end().to_owned().into())
            }
        }
    }
}

fn upstream(entry: &Entry<'_>) -> Option<SocketAddr> {
    entry.upstream_host?.parse().ok()
}

fn of_address(address: Option<SocketAddr>, part: Part) -> Option<Cow<'static, str>> {
    let address = address?;
    Some(match part {
        Part::All => address.to_string().into(),
        Part::Address => address.ip().to_string().into(),
        Part::Port => address.port().to_string().into(),
    })
}

fn pieces(text: &str) -> Result<Pieces, BadFormat> {
    let tokens = tokens(text).map_err(|_| BadFormat::Malformed)?.into_iter();
    let piece = |token| match token {
        Token::Text(text) => Ok(Piece::Text(text.to_owned())),
        Token::Command(text) => {
            let command = Command::parse(text).map_err(|_| BadFormat::Malformed)?;
            let operator = operator(command).map_err(|_| BadFormat::Malformed)?;
            let operator = operator.ok_or_else(|| BadFormat::Unknown(text.to_owned()))?;
            Ok(Piece::Command(operator, command.limit))
        }
    };
    tokens.map(piece).collect()
}

/// By Envoy's name for it; `None` where it is not known.
fn operator(command: Command<'_>) -> Result<Option<Operator>, FormatError> {
    let Command { name, argument, .. } = command;
    if let Some(argument) = argument {
        return Ok(match name {
            "START_TIME" => start_time(Some(argument)).map(Operator::StartTime),
            "REQ" => fields(argument).map(|(name, or)| Some(Operator::Request(name, or)))?,
            "REQ_WITHOUT_QUERY" => {
                fields(argument).map(|(name, or)| Some(Operator::RequestWithoutQuery(name, or)))?
            }
            "RESP" => fields(argument).map(|(name, or)| Some(Operator::Response(name, or)))?,
            "GRPC_STATUS" if argument == "NUMBER" => Some(Operator::GrpcStatus),
            _ => None,
        });
    }
    // Nothing stands between the client and the mesh that would speak for it.
    let address = name
        .strip_prefix("DOWNSTREAM_DIRECT_REMOTE_")
        .or_else(|| name.strip_prefix("DOWNSTREAM_REMOTE_"))
        .map(|part| (Operator::Client as fn(Part) -> Operator, part))
        .or_else(|| {
            Some((
                Operator::Destination as _,
                name.strip_prefix("DOWNSTREAM_LOCAL_")?,
            ))
        })
        .or_else(|| {
            Some((
                Operator::UpstreamLocal as _,
                name.strip_prefix("UPSTREAM_LOCAL_")?,
            ))
        })
        .or_else(|| {
            Some((
                Operator::UpstreamHost as _,
                name.strip_prefix("UPSTREAM_REMOTE_")?,
            ))
        });
    if let Some((operator, part)) = address {
        let part = match part {
            "ADDRESS" => Part::All,
            "ADDRESS_WITHOUT_PORT" => Part::Address,
            "PORT" => Part::Port,
            _ => return Ok(None),
        };
        return Ok(Some(operator(part)));
    }
    Ok(Some(match name {
        "START_TIME" => return Ok(start_time(None).map(Operator::StartTime)),
        "PROTOCOL" => Operator::Protocol,
        "RESPONSE_CODE" => Operator::ResponseCode,
        "RESPONSE_CODE_DETAILS" => Operator::ResponseCodeDetails,
        "RESPONSE_FLAGS" => Operator::ResponseFlags,
        "CONNECTION_TERMINATION_DETAILS" => Operator::TerminationDetails,
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => Operator::TransportFailureReason,
        "BYTES_RECEIVED" => Operator::BytesReceived,
        "BYTES_SENT" => Operator::BytesSent,
        "DURATION" => Operator::Duration,
        "UPSTREAM_HOST" => Operator::UpstreamHost(Part::All),
        "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => Operator::UpstreamCluster,
        "REQUESTED_SERVER_NAME" => Operator::RequestedServerName,
        "ROUTE_NAME" => Operator::RouteName,
        "GRPC_STATUS_NUMBER" => Operator::GrpcStatus,
        "DOWNSTREAM_PEER_URI_SAN" => Operator::PeerIdentity,
        "HOSTNAME" => Operator::Hostname,
        _ => return Ok(None),
    }))
}

#[cfg(test)]
mod tests;
