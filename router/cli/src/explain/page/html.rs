//! A writer of HTML. Markup is of literals alone, and every text and value is escaped.

use std::fmt::{Display, Write as _};

use crate::render::visible;

/// The attributes of an element.
pub(super) type HtmlAttributes<'a> = &'a [(&'static str, &'a dyn Display)];

/// A document, or a part of one.
#[derive(Debug, Default)]
pub(super) struct Html(String);

impl Html {
    /// An element, with what `inside` writes in it.
    pub(super) fn element(
        &mut self,
        name: &'static str,
        attributes: HtmlAttributes<'_>,
        inside: impl FnOnce(&mut Self),
    ) {
        self.void(name, attributes);
        inside(self);
        self.literal("</");
        self.literal(name);
        self.literal(">");
    }

    /// An element with a text in it.
    pub(super) fn with(&mut self, name: &'static str, attributes: HtmlAttributes<'_>, text: impl Display) {
        self.element(name, attributes, |html| html.text(text));
    }

    /// An element without content and end.
    pub(super) fn void(&mut self, name: &'static str, attributes: HtmlAttributes<'_>) {
        self.literal("<");
        self.literal(name);
        for (key, value) in attributes {
            self.literal(" ");
            self.literal(key);
            self.literal("=\"");
            self.text(value);
            self.literal("\"");
        }
        self.literal(">");
    }

    /// A text. Names in it come from containers: what is markup, is not shown, or changes the
    /// direction of writing does not get through.
    pub(super) fn text(&mut self, text: impl Display) {
        for c in visible(&text.to_string()).chars() {
            match c {
                '&' => self.literal("&amp;"),
                '<' => self.literal("&lt;"),
                '>' => self.literal("&gt;"),
                '"' => self.literal("&quot;"),
                '\'' => self.literal("&#39;"),
                other => self.0.push(other),
            }
        }
    }

    /// Markup.
    pub(super) fn literal(&mut self, markup: &'static str) {
        self.0.push_str(markup);
    }

    pub(super) fn finish(self) -> String {
        self.0
    }
}

/// A place or a length in a picture, in its units.
#[derive(Clone, Copy, Debug)]
pub(super) struct Px(pub(super) f64);

impl Display for Px {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1}", self.0)
    }
}

/// The points of a line: `x,y x,y`.
pub(super) fn points(points: &[(f64, f64)]) -> String {
    let mut text = String::new();
    for (x, y) in points {
        write!(text, "{x:.1},{y:.1} ").expect("a text takes what is written");
    }
    text.pop();
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_values_are_escaped_and_hidden_characters_replaced() {
        let hostile = "<script>&'\"\u{202e}\u{1b}[2J\n";
        let mut html = Html::default();
        html.element("p", &[("title", &hostile)], |html| html.text(hostile));
        let safe = "&lt;script&gt;&amp;&#39;&quot;\u{fffd}\u{fffd}[2J\u{fffd}";
        assert_eq!(html.finish(), format!("<p title=\"{safe}\">{safe}</p>"));
    }

    #[test]
    fn places_have_one_decimal() {
        assert_eq!(
            (Px(1.26).to_string(), points(&[(0.0, 1.04), (2.0, 3.0)])),
            ("1.3".to_owned(), "0.0,1.0 2.0,3.0".to_owned())
        );
    }
}
