/**
 * The form that adds an endpoint to this server's registry: in the sidebar, and as a dialog of the menu's command.
 */
import { notify, request } from "./request.js";
import { button, make, openDialog } from "./elements.js";
import { refresh } from "./placements.js";

/**
 * Open the form in a dialog.
 * @param {object} app
 */
export function addEndpoint(app) {
  const dialog = openDialog(app, "Add an endpoint", endpointForm(app, () => dialog.close()));
  dialog.querySelector("textarea").focus();
}

/**
 * The form. What was entered stays after an error.
 * @param {object} app
 * @param {() => void} done called when an endpoint was added, or the user has cancelled
 * @returns {HTMLFormElement}
 */
export function endpointForm(app, done) {
  const hints = { spellcheck: false, autocomplete: "off" };
  const line = make("textarea", { rows: 3, required: true, placeholder: "yggdrasill-pairing: …   or   192.168.1.20:8188", ...hints });
  const name = make("input", { placeholder: "from the line, or the host name", ...hints });
  const token = make("input", { type: "password", placeholder: "if the line above has none", ...hints });
  const ca = make("input", { placeholder: "PEM file on this server", ...hints });
  const problem = make("div", { class: "ygg-problem", role: "alert" });
  const add = make("button", { class: "ygg-button ygg-main", type: "submit" }, "Add");
  const replaceButton = button("Replace", () => void send(true), "replace");
  replaceButton.hidden = true;

  async function send(replace) {
    add.disabled = true;
    replaceButton.hidden = true;
    problem.textContent = "";
    const texts = { name: name.value.trim(), token: token.value.trim(), ca: ca.value.trim() };
    const given = Object.fromEntries(Object.entries(texts).filter(([, value]) => value));
    try {
      const added = await request(app, "pair", {}, { line: line.value.trim(), ...given, ...(replace && { replace }) });
      await refresh(app);
      const served = added.graphs.map((graph) => graph.graph_id).join(", ");
      notify(app, "success", `Endpoint “${added.name}” was added`, served ? `It serves ${served}.` : "");
      done();
    } catch (error) {
      problem.textContent = error.message;
      replaceButton.hidden = error.kind !== "DuplicateName";
      add.disabled = false;
      if (error.message.includes("certificate")) advanced.open = true;
    }
  }
  const keys = (event) => {
    if (event.key === "Escape") done();
    if (event.key === "Enter" && event.target === line && !event.shiftKey) {
      event.preventDefault();
      form.requestSubmit();
    }
    event.stopPropagation();
  };
  const advanced = make(
    "details",
    {},
    make("summary", { class: "ygg-soft" }, "More"),
    make("label", {}, "Token", token),
    make("label", {}, "Certificate authority", ca),
  );
  const submit = (event) => {
    event.preventDefault();
    void send(false);
  };
  const form = make(
    "form",
    { class: "ygg-form", onsubmit: submit, onkeydown: keys },
    make("label", {}, "Pairing line or address of the other machine", line),
    make("div", { class: "ygg-soft" }, "The Yggdrasill tab of the other ComfyUI copies its pairing line."),
    make("label", {}, "Name", name),
    advanced,
    problem,
    make("div", { class: "ygg-buttons" }, add, replaceButton, button("Cancel", done, "cancel", "ygg-quiet")),
  );
  return form;
}
