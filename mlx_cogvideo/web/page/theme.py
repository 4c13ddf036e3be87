"""How the page looks: fonts of the system, and colours that can be read in light and in dark."""

import gradio as gr

_FONTS = ("system-ui", "-apple-system", "Segoe UI", "sans-serif")
_FIXED = ("ui-monospace", "Menlo", "Consolas", "monospace")


def make_theme() -> gr.themes.Base:
    """A theme that asks nobody for fonts. Text has a contrast of 4.5 at least."""
    theme = gr.themes.Base(
        primary_hue="blue",
        secondary_hue="blue",
        neutral_hue="slate",
        radius_size="md",
        font=_FONTS,
        font_mono=_FIXED,
    )
    return theme.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color="*neutral_900",
        body_text_color_dark="*neutral_100",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_width="1px",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_100",
        block_title_text_weight="600",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        input_background_fill="white",
        input_background_fill_dark="*neutral_950",
        input_border_width="1px",
        input_border_color="*neutral_500",
        input_border_color_dark="*neutral_500",
        input_border_color_focus="*primary_700",
        input_border_color_focus_dark="*primary_300",
        input_placeholder_color="*neutral_600",
        input_placeholder_color_dark="*neutral_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        button_secondary_background_fill="white",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover_dark="*neutral_700",
        button_secondary_border_color="*neutral_500",
        button_secondary_border_color_dark="*neutral_500",
        button_secondary_text_color="*neutral_900",
        button_secondary_text_color_dark="*neutral_100",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_300",
    )


CSS = """
.gradio-container { max-width: min(1280px, 100vw) !important; margin: 0 auto !important;
  overflow: clip !important; min-width: 0 !important; }
.gradio-container [role="tab"][aria-selected="true"] { color: var(--link-text-color) !important; }
.gradio-container .tab-container button { padding: 0 .65rem !important; }
.gradio-container .wrap:has(> .wrap-inner)
  { border: 1px solid var(--input-border-color) !important; }
.gradio-container :is(button, a, input, textarea, select, summary, video, [tabindex]):focus-visible
  { outline: 3px solid var(--focus) !important; outline-offset: 2px; }
:root { --focus: #1d4ed8; --bar: #1d4ed8; --bad: #b91c1c; --well: #15803d; }
.dark { --focus: #93c5fd; --bar: #60a5fa; --bad: #fca5a5; --well: #86efac; }
#head h1 { margin: 0; font-size: 1.6rem; }
#head p { margin: .2rem 0 0; color: var(--body-text-color-subdued); }
#now { border: 1px solid var(--border-color-primary); border-radius: var(--radius-lg);
  background: var(--block-background-fill); padding: 1rem; gap: .25rem; }
#now h2 { margin: 0; }
#now .block:has(> .html-container > .part:empty) { display: none; }
#now { flex-wrap: nowrap !important; overflow-x: hidden; }
#now > * { flex-shrink: 0; }
#now .html-container:has(> :empty) { padding: 0; }
.part [data-testid="status-tracker"], .said [data-testid="status-tracker"] { display: none; }
.part h2, .part h3 { margin: 0 0 .4rem; font-size: 1.1rem; color: var(--body-text-color); }
.part p { margin: .25rem 0; overflow-wrap: anywhere; color: var(--body-text-color); }
.part .quiet, .said .quiet { color: var(--body-text-color-subdued); }
.part .title { font-weight: 600; display: -webkit-box !important; -webkit-line-clamp: 3;
  -webkit-box-orient: vertical; overflow: hidden; }
.part .bar { height: 12px; border-radius: 6px; background: var(--neutral-200); overflow: hidden;
  margin: .5rem 0; }
.dark .part .bar { background: var(--neutral-700); }
.part .bar div { height: 100%; background: var(--bar); transition: width .4s; }
.part img, .part video { display: block; width: 100%; max-height: 50vh; object-fit: contain;
  background: #000; border-radius: var(--radius-md); }
.part ul { list-style: none !important; margin: 0; padding: 0 !important; }
#videos-shown :is(img, video) { max-height: 320px; }
.part ol { margin: 0; padding: 0 0 0 1.5rem; }
.part li { padding: .5rem 0; border-top: 1px solid var(--border-color-primary); }
.part .buttons { display: flex; flex-wrap: wrap; gap: .4rem; margin-top: .4rem; }
.part .buttons button { margin: 0; }
.part button { min-height: 36px; min-width: 36px; padding: .3rem .8rem; cursor: pointer;
  border: 1px solid var(--button-secondary-border-color); border-radius: var(--radius-md);
  background: var(--button-secondary-background-fill); color: var(--button-secondary-text-color); }
.part button:hover { background: var(--button-secondary-background-fill-hover); }
.part button[disabled] { opacity: .5; cursor: default; }
.bad { color: var(--bad) !important; font-weight: 600; }
.well { color: var(--well) !important; font-weight: 600; }
:is(.part, .said) a { margin: 0 !important; padding: 0 !important; }
.needs:has(~ .answer .bad) { display: none; }
.said p { margin: .2rem 0; overflow-wrap: anywhere; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
@media (min-width: 1000px) { #now { position: sticky; top: 1rem; max-height: calc(100vh - 2rem);
  overflow-y: auto; } }
@media (max-width: 999px) { #columns { flex-direction: column; } #now { order: -1; }
  .gradio-container .main { padding: 12px !important; }
  .gradio-container :is(.main, .main > .wrap, main, .column), #columns, #tabs
  { min-width: 0 !important; max-width: 100%; } }
@media (prefers-reduced-motion: reduce) { .part .bar div { transition: none; } }
"""
"""The page's own styles: the panel, and a focus that is seen."""

JS = """() => {
  const name = () => document.querySelectorAll('button.upload-container[aria-label]')
    .forEach((button) => button.removeAttribute('aria-label'));
  new MutationObserver(name).observe(document.body, {childList: true, subtree: true});
  name();
}"""
"""Has the buttons for uploads be named by the text that they show."""

SPEAKS = "element.setAttribute('role', 'status'); element.setAttribute('aria-live', 'polite');"
"""Has a screen reader say what an element of HTML says from now on."""
