// Package status is what `netagent status` says: the report the agent serves on its socket, and how
// it is printed for people.
package status

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/braidnet/braid/internal/reconcile"
)

// Report is the whole state of one agent.
type Report struct {
	Node       string             `json:"node"`
	Version    string             `json:"version"`
	Started    time.Time          `json:"started"`
	Source     string             `json:"source"`           // where the cluster is read from
	Synced     bool               `json:"synced"`           // the source has delivered its first full state
	Revision   uint64             `json:"revision"`         // newest revision of the cluster's state
	Current    time.Time          `json:"current,omitzero"` // the state is complete as of this moment; zero when the source cannot tell
	Objects    map[string]int     `json:"objects"`          // count by kind
	Found      []Finding          `json:"found"`            // what is worked out, not set
	Subsystems []reconcile.Status `json:"subsystems"`
	Problems   []Problem          `json:"problems,omitempty"` // what the source could not read
	Policies   int                `json:"policiesNotEnforced"`
	Audited    []string           `json:"namespacesUnderAudit,omitempty"` // with pods on this node, which policies deny nothing
	Services   map[string]Service `json:"services,omitempty"`             // by namespace/name; only where it is asked for, see FetchAll
}

// Problem is something in the source that could not be used; its last good version stays in force.
type Problem struct {
	Text  string    `json:"text"` // begins with file:line for manifests
	Since time.Time `json:"since"`
}

// Finding is something that the agent works out from the cluster and the machine, or is told, and why it is so.
type Finding struct {
	What  string `json:"what"` // "pod MTU"
	Value string `json:"value"`
	Why   string `json:"why"`
}

// OK reports whether everything the agent knows is programmed, or on its way there for no longer than
// it should.
func (r *Report) OK() bool {
	if !r.Synced {
		return false
	}
	for _, s := range r.Subsystems {
		if s.Problem(time.Now()) != "" {
			return false
		}
	}
	return true
}

// JSON writes the report as indented JSON.
func (r *Report) JSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// Text writes the report as a table for people. now is the moment ages are counted from.
func (r *Report) Text(w io.Writer, now time.Time) error {
	state := "synced"
	if !r.Synced {
		state = "waiting for the first full state"
	}
	fmt.Fprintf(w, "node %s, agent %s up %s\nsource %s: %s, revision %d (%s)\n\n", r.Node, r.Version,
		Age(now.Sub(r.Started)), r.Source, state, r.Revision, counts(r.Objects))
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "SUBSYSTEM\tSTATE\tREVISION\tPROGRAMMED\tSYNCED\tLAST ERROR")
	for _, s := range r.Subsystems {
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\t%s\n", s.Name, stateOf(now, s), s.Revision, orNone(s.Summary),
			ago(now, s.Synced), lastError(now, s))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if len(r.Found) > 0 {
		fmt.Fprintln(t, "\nFOUND\tVALUE\tBECAUSE")
		for _, f := range r.Found {
			fmt.Fprintf(t, "%s\t%s\t%s\n", f.What, f.Value, f.Why)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	for _, s := range r.Subsystems {
		for _, n := range s.Notes {
			fmt.Fprintf(w, "note (%s): %s\n", s.Name, n)
		}
	}
	if r.Policies > 0 {
		fmt.Fprintf(w, "WARNING: %d NetworkPolicy objects are read but NOT enforced by this agent (policy is off, or it makes no pods)\n", r.Policies)
	}
	for _, name := range r.Audited {
		fmt.Fprintf(w, "WARNING: namespace %s is under audit: policies deny its pods nothing, they only count and log (annotation braid.network/policy-audit)\n", name)
	}
	for _, p := range r.Problems {
		fmt.Fprintf(w, "problem: %s (since %s)\n", p.Text, ago(now, p.Since))
	}
	return nil
}

func stateOf(now time.Time, s reconcile.Status) string {
	switch {
	case s.Failing:
		return "FAILING"
	case !s.Ready:
		return "starting"
	case s.Problem(now) != "":
		return "LATE"
	case s.Pending:
		return "applying"
	}
	return "ok"
}

func lastError(now time.Time, s reconcile.Status) string {
	if s.Error == "" {
		return "none"
	}
	return ago(now, s.ErrorAt) + ": " + strings.ReplaceAll(s.Error, "\n", "; ")
}

func orNone(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func ago(now, then time.Time) string {
	if then.IsZero() {
		return "never"
	}
	return Age(now.Sub(then)) + " ago"
}

// Age prints a duration as kubectl does: 40ms, 3s, 5m12s, 3h4m, 2d.
func Age(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(time.Second).String()
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(d.Hours())/24)
}

func counts(m map[string]int) string {
	var parts []string
	for _, k := range []string{"Node", "Namespace", "ServiceCIDR", "Service", "EndpointSlice", "Pod", "NetworkPolicy"} {
		if n, ok := m[k]; ok {
			parts = append(parts, fmt.Sprintf("%s %d", k, n))
		}
	}
	return strings.Join(parts, ", ")
}
