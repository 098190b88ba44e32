package status

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Service says what is in force of one Service.
type Service struct {
	Programmed uint64    `json:"programmed"`          // revision of the newest change of the Service or its endpoints that the kernel has; 0: none yet
	InForce    time.Time `json:"inForce,omitzero"`    // since when
	Pending    bool      `json:"pending,omitempty"`   // there is a newer one
	Counts     *Counts   `json:"counts,omitempty"`    // what its frontends are, in a list
	Frontends  []Front   `json:"frontends,omitempty"` // the same in full, where one Service is asked for
	Notes      []string  `json:"notes,omitempty"`     // what it asks for and does not get
}

// Counts sums up the frontends of a Service.
type Counts struct {
	Frontends int    `json:"frontends"`
	Backends  int    `json:"backends"`        // distinct
	Empty     int    `json:"empty,omitempty"` // frontends without backends for clients outside of the node
	Why       string `json:"why,omitempty"`   // of the first of these
}

// Front is one address that a Service answers on.
type Front struct {
	At       string    `json:"at"` // "10.96.0.10:53/UDP", of a node port "0.0.0.0:30080/TCP"
	Kind     string    `json:"kind"`
	Port     string    `json:"port,omitempty"` // its name
	Backends []Backend `json:"backends"`
	Inside   []Backend `json:"inside,omitempty"`   // in place of Backends, for pods of the node and the node itself
	Why      string    `json:"why,omitempty"`      // why there are no Backends
	Else     string    `json:"else,omitempty"`     // what connections get then: "refused" or "dropped"
	Affinity string    `json:"affinity,omitempty"` // how long a client stays with its backend
	Sources  []string  `json:"sources,omitempty"`  // who may use it; only with Filtered
	Filtered bool      `json:"filtered,omitempty"`
	Traffic  *Traffic  `json:"traffic,omitempty"` // where it is counted
}

// Backend is where connections may go.
type Backend struct {
	At    string `json:"at"`
	Local bool   `json:"local,omitempty"` // on this node, or its EndpointSlice does not say on which
}

// Traffic is what came through a frontend on this node.
type Traffic struct {
	Connections uint64 `json:"connections"`
	PacketsIn   uint64 `json:"packetsIn"` // from clients to backends
	BytesIn     uint64 `json:"bytesIn"`   // of IP packets
	PacketsOut  uint64 `json:"packetsOut"`
	BytesOut    uint64 `json:"bytesOut"`
}

// Services is what the agent says of Services.
type Services struct {
	Node     string             `json:"node"`
	Revision uint64             `json:"revision"` // newest revision of the cluster's state
	Services map[string]Service `json:"services"` // by namespace/name
}

// FetchServices asks the agent behind a unix socket what is in force of one Service, or with name "" of each in short.
func FetchServices(ctx context.Context, socket, name string) (*Services, error) {
	var out Services
	if err := fetch(ctx, socket, "/services?"+url.Values{"name": {name}}.Encode(), &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// JSON writes indented JSON.
func (s *Services) JSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(s)
}

// Text writes a table for people: a line for each Service, or one for each frontend of the only one in full.
func (s *Services) Text(w io.Writer, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	list := slices.Sorted(maps.Keys(s.Services))
	if len(list) == 1 && s.Services[list[0]].Counts == nil {
		return s.one(w, t, now, list[0])
	}
	fmt.Fprintln(t, "SERVICE\tREVISION\tIN FORCE\tFRONTENDS\tBACKENDS\tWITHOUT BACKENDS")
	for _, name := range list {
		v := s.Services[name]
		c := v.Counts
		if c == nil {
			c = &Counts{}
		}
		empty := "-"
		if c.Empty > 0 {
			empty = fmt.Sprintf("%d: %s", c.Empty, c.Why)
		}
		fmt.Fprintf(t, "%s\t%d\t%s\t%d\t%d\t%s\n", name, v.Programmed, v.inForce(now), c.Frontends, c.Backends, empty)
	}
	return t.Flush()
}

func (v *Service) inForce(now time.Time) string {
	switch {
	case v.Programmed == 0:
		return "not yet"
	case v.Pending:
		return ago(now, v.InForce) + ", a newer one is on its way"
	}
	return ago(now, v.InForce)
}

func (s *Services) one(w io.Writer, t *tabwriter.Writer, now time.Time, name string) error {
	v := s.Services[name]
	fmt.Fprintf(w, "service %s on node %s: revision %d, in force %s\n\n", name, s.Node, v.Programmed, v.inForce(now))
	fmt.Fprintln(t, "FRONTEND\tKIND\tPORT\tBACKENDS\tSETTINGS\tTRAFFIC")
	for _, f := range v.Frontends {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", f.At, f.Kind, orNone(f.Port), f.backends(), orNone(f.settings()), orNone(f.Traffic.text()))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, n := range v.Notes {
		fmt.Fprintf(w, "note: %s\n", n)
	}
	return nil
}

func (f *Front) backends() string {
	text := printBackends(f.Backends)
	if len(f.Backends) == 0 {
		text = "none, " + f.Else + ": " + f.Why
	}
	if len(f.Inside) > 0 {
		text += "; for this node's own: " + printBackends(f.Inside)
	}
	return text
}

// maxBackends is how many the table names; JSON has all.
const maxBackends = 10

func printBackends(list []Backend) string {
	var words []string
	for i, b := range list {
		if i == maxBackends {
			words = append(words, fmt.Sprintf("and %d more", len(list)-i))
			break
		}
		if b.Local {
			b.At += " (here)"
		}
		words = append(words, b.At)
	}
	return strings.Join(words, ", ")
}

func (f *Front) settings() string {
	var words []string
	if f.Affinity != "" {
		words = append(words, "affinity "+f.Affinity)
	}
	if f.Filtered {
		words = append(words, "for "+orWord(strings.Join(f.Sources, ", "), "nobody"))
	}
	return strings.Join(words, ", ")
}

func (t *Traffic) text() string {
	if t == nil {
		return ""
	}
	return fmt.Sprintf("%d connections, %d packets in (%s), %d out (%s)", t.Connections, t.PacketsIn, size(t.BytesIn), t.PacketsOut, size(t.BytesOut))
}

// size prints bytes with the unit that keeps them short.
func size(n uint64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	f, i := float64(n), 0
	for f >= 1024 {
		f, i = f/1024, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}

func orWord(s, word string) string {
	if s == "" {
		return word
	}
	return s
}
