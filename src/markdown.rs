//! Markdown of finished replies as safe HTML.
//!
//! Two walls: the parser's events are rewritten so that nothing but our own tags is written (raw HTML becomes text,
//! images become links), and ammonia then keeps a short list of tags and attributes. No styles, no scripts, no ids
//! and no remote content come out, so pages can have a content security policy without `unsafe-inline`.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    iter::Peekable,
    sync::LazyLock,
};

use ammonia::{Builder, UrlRelative};
use pulldown_cmark::{BlockQuoteKind, CowStr, Event, HeadingLevel, Options, Parser, Tag, TagEnd, html};

/// Longest text that is parsed, in bytes. A longer one is shown as it was written.
pub const TEXT_BYTES_MAX: usize = 1 << 20;

/// How deep blocks and spans may nest; deeper ones are flattened. Keeps the work linear for text made to nest.
const DEPTH_MAX: usize = 24;

/// Renders Markdown: paragraphs, headings (two levels down, below the page's own), emphasis, lists, task lists,
/// tables, quotes, fenced code with `class="language-…"`, and links to http, https and mailto, which open in a new
/// tab and tell the target nothing.
///
/// Any text is accepted. Links to other places keep their words only. Text over [`TEXT_BYTES_MAX`] is escaped.
#[must_use]
pub fn render(text: &str) -> String {
    if text.len() > TEXT_BYTES_MAX {
        return format!("<pre>{}</pre>", ammonia::clean_text(text));
    }
    if plain(text) {
        return format!("<p>{text}</p>\n");
    }
    rich(text)
}

/// Whether a text is one paragraph without any mark that Markdown or HTML knows, as short replies often are: it means
/// itself, and needs neither parser.
fn plain(text: &str) -> bool {
    let begins = text.starts_with(char::is_alphabetic) && !text.ends_with(' ');
    begins && text.chars().all(|c| c.is_alphanumeric() || " ,.;?!'".contains(c))
}

fn rich(text: &str) -> String {
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_TASKLISTS;
    let mut raw = String::with_capacity(text.len() + text.len() / 2);
    html::push_html(&mut raw, Tame::new(Parser::new_ext(text, options)));
    SANITIZER.clean(&raw).to_string()
}

/// The fence that would close the code block which a text leaves open (CommonMark 0.31, section 4.5).
#[must_use]
pub fn open_fence(text: &str) -> Option<String> {
    let mut open: Option<String> = None;
    for line in text.lines() {
        let bare = line.trim_start_matches(' ');
        let mark = bare.chars().next().filter(|c| matches!(c, '`' | '~'));
        let Some(mark) = mark.filter(|_| line.len() - bare.len() <= 3) else { continue };
        let rest = bare.trim_start_matches(mark);
        let length = bare.len() - rest.len();
        match &open {
            None if length >= 3 && !(mark == '`' && rest.contains('`')) => open = Some(mark.to_string().repeat(length)),
            Some(fence) if fence.starts_with(mark) && length >= fence.len() && rest.trim().is_empty() => open = None,
            _ => {}
        }
    }
    open
}

static SANITIZER: LazyLock<Builder<'static>> = LazyLock::new(|| {
    let mut builder = Builder::empty();
    builder
        .tags(HashSet::from([
            "p",
            "br",
            "hr",
            "h3",
            "h4",
            "h5",
            "h6",
            "strong",
            "em",
            "del",
            "code",
            "pre",
            "blockquote",
            "ul",
            "ol",
            "li",
            "table",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
            "a",
        ]))
        .clean_content_tags(HashSet::from(["script", "style"]))
        .tag_attributes(HashMap::from([
            ("a", HashSet::from(["href", "title"])),
            ("code", HashSet::from(["class"])),
            ("ol", HashSet::from(["start"])),
        ]))
        .set_tag_attribute_value("a", "target", "_blank")
        .link_rel(Some("noopener noreferrer nofollow"))
        .url_schemes(HashSet::from(["http", "https", "mailto"]))
        .url_relative(UrlRelative::Deny)
        .attribute_filter(|tag, attribute, value| match (tag, attribute) {
            ("code", "class") => language(value).then_some(Cow::Borrowed(value)),
            _ => Some(Cow::Borrowed(value)),
        });
    builder
});

fn language(class: &str) -> bool {
    class.strip_prefix("language-").is_some_and(|name| {
        (1..=32).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-_.#".contains(&byte))
    })
}

/// The parser's events without what a reply has no business to say.
struct Tame<'a, I: Iterator<Item = Event<'a>>> {
    events: Peekable<I>,
    /// open tags that are written
    depth: usize,
    /// open tags that are not, because they are too deep or within a link
    dropped: Vec<TagEnd>,
    /// links do not nest in HTML
    in_link: bool,
    queued: Option<Event<'a>>,
}

impl<'a, I: Iterator<Item = Event<'a>>> Tame<'a, I> {
    fn new(events: I) -> Self {
        Self { events: events.peekable(), depth: 0, dropped: Vec::new(), in_link: false, queued: None }
    }

    fn start(&mut self, tag: Tag<'a>) -> Option<Event<'a>> {
        let tag = match tag {
            Tag::Heading { level, .. } => {
                Tag::Heading { level: lowered(level), id: None, classes: Vec::new(), attrs: Vec::new() }
            }
            Tag::HtmlBlock => Tag::Paragraph,
            Tag::BlockQuote(_) => Tag::BlockQuote(None::<BlockQuoteKind>),
            Tag::Image { link_type, dest_url, title, id } => {
                // An image without a description is named by its address.
                if matches!(self.events.peek(), Some(Event::End(TagEnd::Image))) {
                    self.queued = Some(Event::Text(dest_url.clone()));
                }
                Tag::Link { link_type, dest_url, title, id }
            }
            // The writer marks alignment with a style, which no strict policy lets through.
            Tag::Table(columns) => Tag::Table(vec![pulldown_cmark::Alignment::None; columns.len()]),
            other => other,
        };
        let link = matches!(tag, Tag::Link { .. });
        if !self.dropped.is_empty() || self.depth >= DEPTH_MAX || (link && self.in_link) {
            self.dropped.push(tag.to_end());
            return None;
        }
        self.depth += 1;
        self.in_link |= link;
        Some(Event::Start(tag))
    }

    fn end(&mut self, tag: TagEnd) -> Option<Event<'a>> {
        let tag = match tag {
            TagEnd::Heading(level) => TagEnd::Heading(lowered(level)),
            TagEnd::HtmlBlock => TagEnd::Paragraph,
            TagEnd::Image => TagEnd::Link,
            other => other,
        };
        if let Some(dropped) = self.dropped.pop() {
            let inline = matches!(dropped, TagEnd::Link | TagEnd::Emphasis | TagEnd::Strong | TagEnd::Strikethrough);
            return (!inline).then_some(Event::SoftBreak);
        }
        self.depth = self.depth.saturating_sub(1);
        self.in_link &= tag != TagEnd::Link;
        Some(Event::End(tag))
    }
}

impl<'a, I: Iterator<Item = Event<'a>>> Iterator for Tame<'a, I> {
    type Item = Event<'a>;

    fn next(&mut self) -> Option<Event<'a>> {
        if let Some(event) = self.queued.take() {
            return Some(event);
        }
        loop {
            let event = match self.events.next()? {
                Event::Start(tag) => self.start(tag),
                Event::End(tag) => self.end(tag),
                // Models write it in table cells, where Markdown has no line break.
                Event::InlineHtml(tag) if matches!(&*tag, "<br>" | "<br/>" | "<br />") => Some(Event::HardBreak),
                Event::Html(text) | Event::InlineHtml(text) => Some(Event::Text(text)),
                Event::TaskListMarker(done) => Some(Event::Text(CowStr::Borrowed(if done { "☑ " } else { "☐ " }))),
                other => Some(other),
            };
            if event.is_some() {
                return event;
            }
            if let Some(event) = self.queued.take() {
                return Some(event);
            }
        }
    }
}

const fn lowered(level: HeadingLevel) -> HeadingLevel {
    match level {
        HeadingLevel::H1 => HeadingLevel::H3,
        HeadingLevel::H2 => HeadingLevel::H4,
        HeadingLevel::H3 => HeadingLevel::H5,
        HeadingLevel::H4 | HeadingLevel::H5 | HeadingLevel::H6 => HeadingLevel::H6,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::{prop_assert, proptest};

    use super::*;

    #[test]
    fn what_models_write_is_rendered() {
        for (text, html) in [
            (
                "a *b* **c** ~~d~~ `e<f>`",
                "<p>a <em>b</em> <strong>c</strong> <del>d</del> <code>e&lt;f&gt;</code></p>\n",
            ),
            ("# One\n\n###### Six", "<h3>One</h3>\n<h6>Six</h6>\n"),
            ("1. a\n2. b", "<ol>\n<li>a</li>\n<li>b</li>\n</ol>\n"),
            ("3. a", "<ol start=\"3\">\n<li>a</li>\n</ol>\n"),
            ("- [ ] a\n- [x] b", "<ul>\n<li>☐ a</li>\n<li>☑ b</li>\n</ul>\n"),
            ("> q", "<blockquote>\n<p>q</p>\n</blockquote>\n"),
            ("```rust\nlet x = 1 < 2;\n```", "<pre><code class=\"language-rust\">let x = 1 &lt; 2;\n</code></pre>\n"),
            ("```c++ title=x\n```", "<pre><code class=\"language-c++\"></code></pre>\n"),
            (
                "| a | b |\n|:-:|--:|\n| 1<br>2 | 3 |",
                "<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody>\n\
                 <tr><td>1<br>\n2</td><td>3</td></tr>\n</tbody></table>\n",
            ),
            (
                "[t](https://example.com/?a=1&b=2 \"hint\")",
                "<p><a href=\"https://example.com/?a=1&amp;b=2\" title=\"hint\" target=\"_blank\" \
                 rel=\"noopener noreferrer nofollow\">t</a></p>\n",
            ),
            (
                "<mailto:a@example.com>",
                "<p><a href=\"mailto:a@example.com\" target=\"_blank\" rel=\"noopener noreferrer nofollow\">\
                 mailto:a@example.com</a></p>\n",
            ),
            ("", ""),
        ] {
            assert_eq!(render(text), html, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_taken_as_it_stands_is_what_the_parser_makes_of_it(
            text in r"[a-zA-Zäß字٣' ,.;?!-]{1,3}[\PC ]{0,8}[a-zA-Z0-9ä字 ,.;?!']{0,80}"
        ) {
            prop_assert!(!plain(&text) || render(&text) == rich(&text), "{text:?}");
        }
    }

    #[test]
    fn a_plain_sentence_is_one_paragraph() {
        for text in ["Yes.", "Große Wörter, kurz; ja? 字!", "a 1. b  c"] {
            assert!(plain(text));
            assert_eq!(rich(text), format!("<p>{text}</p>\n"));
        }
        for text in ["", " a", "a ", "1. a", "- a", "a\nb", "a*b*", "a<b", "a&b", "a\u{a0}b", "a\0"] {
            assert!(!plain(text), "{text:?}");
        }
    }

    #[test]
    fn a_code_block_that_is_left_open_is_known_by_its_fence() {
        for (text, fence) in [
            ("plain", None),
            ("```rust\nfn main() {}\n```", None),
            ("```rust\nfn main() {}", Some("```")),
            ("````\n```\nstill code", Some("````")),
            ("~~~\n```\n~~~", None),
            ("   ~~~~\ncode\n~~~", Some("~~~~")),
            ("    ```\nindented code is no fence", None),
            ("``` not`a fence", None),
            ("```\ncode\n``` not closed", Some("```")),
        ] {
            assert_eq!(open_fence(text).as_deref(), fence, "{text}");
        }
    }

    #[test]
    fn raw_html_is_shown_as_text() {
        assert_eq!(render("use <b>x</b>"), "<p>use &lt;b&gt;x&lt;/b&gt;</p>\n");
        assert_eq!(render("<script>alert(1)</script>"), "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>\n");
    }

    #[test]
    fn images_become_links_and_load_nothing() {
        let link = |words: &str| {
            format!(
                "<p><a href=\"https://e.com/p.png\" target=\"_blank\" rel=\"noopener noreferrer nofollow\">{words}</a></p>\n"
            )
        };
        assert_eq!(render("![a cat](https://e.com/p.png)"), link("a cat"));
        assert_eq!(render("![](https://e.com/p.png)"), link("https://e.com/p.png"));
        assert_eq!(render("[![](i.png)](https://e.com/p.png)"), link("i.png"));
        assert_eq!(render("![](data:image/png;base64,AAAA)").matches("href").count(), 0);
    }

    /// Tags that come out, each as it was written, lower case.
    fn tags(html: &str) -> Vec<String> {
        html.split('<').skip(1).map(|rest| rest.split('>').next().unwrap_or_default().to_lowercase()).collect()
    }

    #[test]
    fn nothing_active_comes_out() {
        for text in [
            "<script>alert(1)</script>",
            "<img src=x onerror=alert(1)>",
            "<svg onload=alert(1)><script>alert(1)</script></svg>",
            "<svg><style><img src=x onerror=alert(1)></style></svg>",
            "<math><mtext><table><mglyph><style><!--</style><img title=\"--&gt;&lt;img src=x onerror=alert(1)&gt;\">",
            "<iframe srcdoc=\"<script>alert(1)</script>\"></iframe>",
            "<a href=\"javascript:alert(1)\">x</a>",
            "[x](javascript:alert(1))",
            "[x](JaVaScRiPt:alert(1))",
            "[x](&#106;avascript:alert(1))",
            "[x](java\tscript:alert(1))",
            "[x](<java&#x0A;script:alert(1)>)",
            "[x](vbscript:x)",
            "[x](data:text/html;base64,PHNjcmlwdD4=)",
            "[x](//evil.example/x)",
            "[x](/admin)",
            "[x](#id)",
            "[x](blob:https://e.com/1)",
            "<javascript:alert(1)>",
            "<data:text/html,x>",
            "![x](javascript:alert(1))",
            "![x\" onerror=\"alert(1)](x)",
            "[x](x \"\\\" onmouseover=alert(1) \\\"\")",
            "[a]: javascript:alert(1)\n\n[a]",
            "```\"><script>alert(1)</script>\nx\n```",
            "```js\" onclick=\"alert(1)\nx\n```",
            "# x {#id .class onclick=alert(1)}",
            "<style>*{background:url(https://e.com)}</style>",
            "<p style=\"position:fixed\">x</p>",
            "<form action=https://e.com><input name=p></form>",
            "<base href=https://e.com><meta http-equiv=refresh content=0>",
            "<b <script>alert(1)</script>",
            "<<script>script>alert(1)<</script>/script>",
            "`<img src=x onerror=alert(1)>`",
            "&lt;script&gt;alert(1)&lt;/script&gt;",
            "| <script> |\n|--|\n| <img src=x onerror=alert(1)> |",
            "<!-- --><script>alert(1)</script>",
            "<![CDATA[<script>alert(1)</script>]]>",
            "<?php echo 1 ?><script>alert(1)</script>",
            "\u{0}<scr\u{0}ipt>alert(1)</scr\u{0}ipt>",
        ] {
            let html = render(text);
            for tag in tags(&html) {
                let name = tag.trim_start_matches('/').split(' ').next().unwrap_or_default().to_owned();
                assert!(SANITIZER.clone_tags().contains(&*name), "{text:?} gives <{tag}>: {html}");
                // Quoted values hold no `>`: it is escaped, so an attribute is at the start of a word.
                for attribute in tag.split(' ').skip(1).filter_map(|word| word.split_once('=')) {
                    let known = ["href", "title", "target", "rel", "class", "start"].contains(&attribute.0);
                    assert!(known || tag.contains("title=\""), "{text:?} gives {attribute:?}: {html}");
                }
            }
            let links = tags(&html).iter().filter(|tag| tag.contains("href")).count();
            assert_eq!(links, 0, "{text:?} gives a link: {html}");
        }
    }

    #[test]
    fn a_title_cannot_leave_its_quotes() {
        assert_eq!(
            render("[x](https://e.com '\" onmouseover=\"alert(1)')"),
            "<p><a href=\"https://e.com\" title=\"&quot; onmouseover=&quot;alert(1)\" target=\"_blank\" \
             rel=\"noopener noreferrer nofollow\">x</a></p>\n"
        );
    }

    #[test]
    fn text_made_to_nest_is_flattened_in_bounded_time() {
        let deep = |unit: &str| unit.repeat(TEXT_BYTES_MAX / 4 / unit.len());
        for (name, text) in [
            ("quotes", deep("> ")),
            ("quotes without space", deep(">")),
            ("brackets", deep("[")),
            ("images", deep("![")),
            ("closed brackets", format!("{}{}", deep("["), deep("]"))),
            ("links", deep("[a](")),
            ("linked brackets", deep("[a](b)")),
            ("emphasis", deep("*a ")),
            ("mixed emphasis", deep("*a_ **b__ ")),
            ("backticks", (1..700).map(|n| "`".repeat(n) + " ").collect()),
            ("tags", deep("<a ")),
            ("angle brackets", deep("<")),
            ("comments", deep("<!-")),
            ("lists", deep("- ")),
            ("nested lists", (0..700).map(|n| " ".repeat(n * 2) + "- a\n").collect()),
            ("quoted lists", deep("> - ")),
            ("tables", deep("|a")),
            ("table rows", format!("|a|b|\n|-|-|\n{}", deep("|\n"))),
            ("entities", deep("&amp")),
            ("references", format!("[a]: b\n\n{}", deep("[a]"))),
            ("backslashes", deep("\\")),
            ("strikes", deep("~~a ")),
            ("one line", deep("word ")),
        ] {
            let start = Instant::now();
            let html = render(&text);
            let taken = start.elapsed();
            assert!(taken < Duration::from_secs(5), "{name}: {} bytes took {taken:?}", text.len());
            assert!(html.len() < 300 * text.len().max(100), "{name}: {} bytes became {}", text.len(), html.len());
        }
    }

    #[test]
    fn a_long_text_is_rendered_up_to_the_limit_and_escaped_beyond() {
        let text = "Some *words* and a [link](https://e.com).\n\n".repeat(TEXT_BYTES_MAX / 43);
        assert!(render(&text).contains("<em>words</em>"));
        let text = "<b>*x*".repeat(TEXT_BYTES_MAX / 6 + 1);
        let start: String = render(&text).chars().take(17).collect();
        assert_eq!(start, "<pre>&lt;b&gt;*x*");
    }
}
