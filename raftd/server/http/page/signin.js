// Who has to sign in does so here.

import { signIn, state, update } from "./app.js";
import { field } from "./parts.js";
import { h } from "./h.js";

const given = { token: "", user: "", password: "", isReadOnly: false, problem: "", isBusy: false };

export function signInView() {
  const { takes_passwords: takesPasswords, cluster } = state.session;
  const change = (name) => (value) => {
    given[name] = value;
    update();
  };
  return h(
    "form",
    { key: "sign-in", class: "sign-in", onsubmit: submit },
    h("h1", {}, `Sign in to ${cluster}`),
    state.signedOut && h("p", { class: "problem", role: "alert" }, state.signedOut),
    h("p", { class: "quiet" }, "With a token that an operator has made with ", h("code", {}, "raftd token create"), takesPasswords ? ", or with your name and password." : ". (Passwords are taken over TLS only.)"),
    field({ name: "token", label: "Token: the content of the file", kind: "password", autocomplete: "off", created: (node) => node.focus(), value: given.token, oninput: change("token") }),
    takesPasswords && [
      field({ name: "user", label: "or name", autocomplete: "username", value: given.user, oninput: change("user") }),
      field({ name: "password", label: "and password", kind: "password", autocomplete: "current-password", value: given.password, oninput: change("password") }),
    ],
    field({ name: "read-only", label: "Only look: nothing can be changed until I sign in again", kind: "checkbox", value: given.isReadOnly, oninput: change("isReadOnly") }),
    given.problem && h("p", { class: "problem", role: "alert" }, given.problem),
    h("p", { class: "buttons" }, h("button", { type: "submit", class: "main", disabled: given.isBusy || !(given.token || (given.user && given.password)) }, "Sign in")),
  );
}

const basic = (text) => `Basic ${btoa(String.fromCharCode(...new TextEncoder().encode(text)))}`;

async function submit(event) {
  event.preventDefault();
  given.isBusy = true;
  given.problem = "";
  update();
  try {
    await signIn(given.token ? `Bearer ${given.token.trim()}` : basic(`${given.user}:${given.password}`), given.isReadOnly);
    given.token = given.password = "";
  } catch (problem) {
    given.problem = problem.status === 401 ? "That is not known here: it is mistyped, has expired, or was revoked." : problem.message;
  }
  given.isBusy = false;
  update();
}
