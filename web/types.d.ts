// The API's messages, by the OpenAPI document that the daemon serves. Only the type checker reads
// this: `cargo xtask test web` makes `berth-api` out of that document.
import type { components } from "berth-api";

type Schemas = components["schemas"];

export type Address = Schemas["DeviceAddress"];
export type Capabilities = Schemas["Capabilities"];
export type Claim = Schemas["Claim"];
export type Device = Schemas["Device"];
export type DeviceHealth = Schemas["DeviceHealth"];
export type Domain = Schemas["Domain"];
export type Event = Schemas["Event"];
export type Finding = Schemas["Finding"];
export type Explanation = Schemas["Explanation"];
export type DeviceVerdict = Schemas["DeviceVerdict"];
export type PolicyVerdict = Schemas["PolicyVerdict"];
export type Group = Schemas["Group"];
export type Owner = Schemas["Owner"];
export type Link = Schemas["Link"];
export type Process = Schemas["Process"];
export type ProblemDocument = Schemas["Problem"];
export type Refusal = Schemas["Refusal"];
export type Reservation = Schemas["Reservation"];
export type ListGroups = Schemas["ListGroupsResponse"];
export type ListReservations = Schemas["ListReservationsResponse"];
export type ListEvents = Schemas["ListEventsResponse"];

/** What the address bar says. */
export interface Route {
  view: string;
  id: string;
  params: URLSearchParams;
}

/** What the daemon says of this page's session. */
export interface SessionState {
  identity: string;
  role: string;
  label: string;
  idleLeftMs: number;
  leftMs: number;
}

/** What changes are made with. */
export interface Actions {
  session: import("./session.js").Session;
  /** Says what a change came to. */
  say(...what: import("./dom.js").Child[]): void;
}

/** What a view is made with. */
export interface Context {
  store: import("./store.js").Store;
  actions: Actions;
  route: Route;
  /** Puts parameters into the address without a new entry in the history. */
  setParams(params: Record<string, string>): void;
}

/** A mounted view. */
export interface View {
  title: string;
  /** The store changed, or the route's parameters did. */
  update(route: Route): void;
  leave?(): void;
}
