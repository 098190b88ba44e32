package lab

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/braidnet/braid/netagent/lab/cluster"
	"github.com/braidnet/braid/netagent/status"
)

// Phase is how far a lab has come.
type Phase string

// The phases of a lab, in order; Failed may follow any of them but Up.
const (
	PhaseNetwork Phase = "building the network"
	PhaseNodes   Phase = "starting nodes"
	PhasePods    Phase = "starting pods"
	PhaseUp      Phase = "up"
	PhaseFailed  Phase = "failed"
)

// Status is the whole state of a lab, as `lab status -o json` prints it.
type Status struct {
	Name        string       `json:"name"`
	Phase       Phase        `json:"phase"`
	Error       string       `json:"error,omitempty"` // why it failed
	Created     time.Time    `json:"created"`
	Family      string       `json:"family"`
	Backend     string       `json:"backend"`
	ServiceMode string       `json:"serviceMode"`
	Nodes       []NodeStatus `json:"nodes"`
	PodsReady   int          `json:"podsReady"`
	Pods        int          `json:"pods"`
	PodsEnding  int          `json:"podsEnding"` // deleted and still serving; not among Pods
	// Waiting names pods that are not ready, with the reason where one is known.
	Waiting []string `json:"waiting,omitempty"`
	// Notes and Problems are what the manifests of `up` gave rise to; each problem is a document
	// that is not in force and begins with file:line.
	Notes    []string `json:"notes,omitempty"`
	Problems []string `json:"problems,omitempty"`
	Services int      `json:"services"`
	Dir      string   `json:"dir"`
}

// NodeStatus is the state of one node.
type NodeStatus struct {
	Name     string         `json:"name"`
	IPs      []netip.Addr   `json:"ips"`
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
	NetNS    string         `json:"netns"`
	Agent    ProgramStatus  `json:"agent"`
	DNS      ProgramStatus  `json:"dns"`
	Pods     int            `json:"pods"`
}

func (n *NodeStatus) ready() bool { return n.Agent.Ready && n.DNS.Ready }

// addCluster fills in what the control plane knows.
func (s *Status) addCluster(ctl *cluster.Controller) {
	if s.Phase == PhaseUp {
		s.Pods = 0 // all that are to be have been made: only those there are count
	}
	there := 0
	for _, p := range ctl.Pods() {
		if p.Phase == cluster.Terminating && p.Error == "" {
			s.PodsEnding++
			continue
		}
		there++
		if p.Ready {
			s.PodsReady++
			continue
		}
		why := p.Error
		if why == "" && p.Phase == "Running" {
			why = "not ready"
		}
		s.Waiting = append(s.Waiting, strings.TrimSuffix(fmt.Sprintf("%s/%s on node %s is %s: %s", p.Namespace, p.Name, p.Node, p.Phase, strings.ReplaceAll(why, "\n", "; ")), ": "))
	}
	s.Pods = max(s.Pods, there)
}

// text prints the status for people.
func (s *Status) text(w io.Writer, now time.Time) error {
	fmt.Fprintf(w, "lab %s: %s, age %s, %s, overlay %s, services %s\n", s.Name, s.Phase, status.Age(now.Sub(s.Created)),
		s.Family, s.Backend, s.ServiceMode)
	if s.Error != "" {
		fmt.Fprintf(w, "error: %s\n", s.Error)
	}
	ending := ""
	if s.PodsEnding > 0 {
		ending = fmt.Sprintf(", %d ending", s.PodsEnding)
	}
	fmt.Fprintf(w, "pods %d/%d ready%s, services %d\nfiles and logs: %s\n\n", s.PodsReady, s.Pods, ending, s.Services, s.Dir)
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tADDRESSES\tPOD CIDRS\tAGENT\tDNS\tPODS")
	for _, n := range s.Nodes {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\n", n.Name, join(n.IPs), join(n.PodCIDRs), n.Agent.text(now), n.DNS.text(now), n.Pods)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, line := range s.Problems {
		fmt.Fprintf(w, "problem: %s\n", line)
	}
	for _, line := range s.troubles() {
		fmt.Fprintf(w, "not ready: %s\n", line)
	}
	return nil
}

// troubles says of each thing that is not ready what it waits for.
func (s *Status) troubles() (out []string) {
	for _, n := range s.Nodes {
		if !n.Agent.Ready {
			out = append(out, fmt.Sprintf("node/%s/netagent: %s (log: %s)", n.Name, n.Agent.Why, n.Agent.Log))
		}
		if !n.DNS.Ready {
			out = append(out, fmt.Sprintf("node/%s/coredns: %s (log: %s)", n.Name, n.DNS.Why, n.DNS.Log))
		}
	}
	for _, p := range s.Waiting {
		out = append(out, "pod "+p)
	}
	return out
}

func (p *ProgramStatus) text(now time.Time) string {
	state := "ready"
	switch {
	case p.PID == 0:
		state = "down"
	case !p.Ready:
		state = "starting"
	}
	out := state + " " + status.Age(now.Sub(p.Since))
	if p.Restarts > 0 {
		out += fmt.Sprintf(" (%d restarts)", p.Restarts)
	}
	return out
}

func join[T fmt.Stringer](values []T) string {
	var parts []string
	for _, v := range values {
		parts = append(parts, v.String())
	}
	return strings.Join(parts, " ")
}

// printPods prints pods as a table; namespace "" shows all, with a column for it.
func printPods(w io.Writer, pods []cluster.PodStatus, namespace string, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	all := namespace == ""
	column := func(ns string) string {
		if all {
			return ns + "\t"
		}
		return ""
	}
	fmt.Fprintln(t, column("NAMESPACE")+"NAME\tREADY\tSTATUS\tAGE\tIPS\tNODE")
	for _, p := range pods {
		fmt.Fprintf(t, "%s%s\t%t\t%s\t%s\t%s\t%s\n", column(p.Namespace), p.Name, p.Ready, p.Phase,
			status.Age(now.Sub(p.Created)), join(p.IPs), p.Node)
	}
	return t.Flush()
}

// printJSON writes a value indented, as every `-o json` does.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
