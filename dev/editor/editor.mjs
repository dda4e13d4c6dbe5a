// The Dockerfile's editor: CodeMirror in the place of the page's textarea, which stays what the form sends.
import { defaultKeymap, history, historyKeymap } from "@codemirror/commands";
import { HighlightStyle, StreamLanguage, syntaxHighlighting } from "@codemirror/language";
import { dockerFile } from "@codemirror/legacy-modes/mode/dockerfile";
import { EditorState } from "@codemirror/state";
import { tags } from "@lezer/highlight";
import { drawSelection, EditorView, highlightActiveLine, keymap, lineNumbers } from "@codemirror/view";

// Bootstrap's own colours, so that light and dark are the page's.
const colours = HighlightStyle.define([
  { tag: tags.keyword, color: "var(--bs-link-color)", fontWeight: "600" },
  { tag: tags.comment, color: "var(--bs-secondary-color)", fontStyle: "italic" },
  { tag: tags.string, color: "var(--bs-success-text-emphasis)" },
  { tag: tags.variableName, color: "var(--bs-warning-text-emphasis)" },
]);
const look = EditorView.theme({
  "&": { color: "var(--bs-body-color)", backgroundColor: "var(--bs-body-bg)" },
  ".cm-content": { caretColor: "var(--bs-body-color)", fontFamily: "var(--bs-font-monospace)" },
  ".cm-gutters": { color: "var(--bs-secondary-color)", backgroundColor: "var(--bs-tertiary-bg)", border: "none" },
  ".cm-activeLine": { backgroundColor: "transparent" },
  "&.cm-focused": { outline: "3px solid #fd7e14" },
  ".cm-cursor": { borderLeftColor: "var(--bs-body-color)" },
  "&.cm-focused > .cm-scroller > .cm-selectionLayer .cm-selectionBackground, .cm-selectionBackground": {
    backgroundColor: "var(--bs-primary-bg-subtle)",
  },
});

const area = document.getElementById("dockerfile");
if (area) {
  const view = new EditorView({
    parent: area.parentElement,
    state: EditorState.create({
      doc: area.value,
      extensions: [
        lineNumbers(),
        history(),
        drawSelection(),
        highlightActiveLine(),
        StreamLanguage.define(dockerFile),
        syntaxHighlighting(colours),
        look,
        // Tab leaves the editor, as it leaves every other field: nobody is trapped at the keyboard.
        keymap.of([...defaultKeymap, ...historyKeymap]),
        EditorView.lineWrapping,
        EditorView.contentAttributes.of({ "aria-label": "Dockerfile", spellcheck: "false" }),
        // The page forbids styles that did not come with it; this is the word that lets ours in.
        EditorView.cspNonce.of(document.body.dataset.nonce),
      ],
    }),
  });
  area.hidden = true;
  area.form.addEventListener("submit", () => {
    area.value = view.state.doc.toString();
  });
}
