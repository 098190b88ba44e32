package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// stateAbsent is shown for specs that no run has selected yet.
const stateAbsent = "not run"

// row is a spec with what it came to on both networks.
type row struct {
	spec         string
	braid, stock outcome
}

// reportHead begins docs/conformance.md; the rest is computed.
const reportHead = `# Conformance

Kubernetes' own end-to-end suite, on real clusters of one machine: etcd, the control plane, and nodes of
containerd and kubelet ([test/cluster](../test/cluster/README.md)). All of its ` + "`[sig-network]`" + ` specs, once with
Braid as the only network, once with the stock parts: the reference CNI plugins (bridge, host-local, portmap) with
routes between the nodes, kube-proxy in nftables mode, and CoreDNS.

This page is made of the JUnit reports of the runs, by

    make conformance

which takes about two hours and needs what ` + "`make deps`" + ` installs. A part of it runs again, and keeps the other results, with

    go run -C test/cluster . conformance --only stock,dual --focus 'session affinity'

Single-stack specs run on three nodes with IPv4 addresses, those about zones on six, dual-stack specs on two. Test
images are made of Debian's packages and Kubernetes' sources, since no registry is asked: one Debian with everybody's tools
stands for Alpine, BusyBox and others.
`

// renderReport returns docs/conformance.md: what all specs came to, by the records of both networks. A pure
// function; a test holds the committed page against it.
func renderReport(all []string, records []*record) string {
	var b strings.Builder
	b.WriteString(reportHead)
	rows := collect(all, records)
	writeFacts(&b, records)
	writeCounts(&b, rows)
	writeFailures(&b, rows)
	writeSkips(&b, rows)
	b.WriteString("\n## All specs\n\n| spec | Braid | stock |\n|---|---|---|\n")
	for _, r := range rows {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", cell(strings.TrimPrefix(r.spec, specPrefix)), r.braid.State, r.stock.State)
	}
	return b.String()
}

// collect finds for each spec its outcomes, or why it is not run.
func collect(all []string, records []*record) []row {
	of := func(network, spec string) outcome {
		if why := excluded(network, spec); why != "" {
			return outcome{Spec: spec, State: stateSkipped, Why: why}
		}
		for _, r := range records {
			if r.Network != network || r.Family != familyOf(spec) {
				continue
			}
			if o, ok := r.find(spec); ok {
				return o
			}
		}
		return outcome{Spec: spec, State: stateAbsent}
	}
	var out []row
	for _, spec := range all {
		out = append(out, row{spec, of(networkBraid, spec), of(networkStock, spec)})
	}
	return out
}

func writeFacts(b *strings.Builder, records []*record) {
	b.WriteString("\n## What ran, and where\n\n| ")
	facts := map[string]bool{}
	for _, r := range records {
		fmt.Fprintf(b, "| %s, %s ", title(r.Network), r.Family)
		for k := range r.Facts {
			facts[k] = true
		}
	}
	b.WriteString("|\n|---|" + strings.Repeat("---|", len(records)) + "\n")
	for _, k := range slices.Sorted(maps.Keys(facts)) {
		fmt.Fprintf(b, "| %s ", cell(k))
		for _, r := range records {
			fmt.Fprintf(b, "| %s ", cell(r.Facts[k]))
		}
		b.WriteString("|\n")
	}
}

func title(network string) string {
	if network == networkBraid {
		return "Braid"
	}
	return network
}

// writeCounts counts specs by kind of cluster, and those that every cluster must pass to be called
// conformant.
func writeCounts(b *strings.Builder, rows []row) {
	b.WriteString("\n## Results\n\n| specs | network | passed | failed | skipped | not run |\n|---|---|---|---|---|---|\n")
	for _, kind := range []struct {
		name string
		of   func(spec string) bool
	}{
		{"Conformance", func(s string) bool { return strings.Contains(s, "[Conformance]") }},
		{"single-stack (with those)", func(s string) bool { return familyOf(s) == "v4" }},
		{"dual-stack", func(s string) bool { return familyOf(s) == "dual" }},
	} {
		for _, network := range []string{networkBraid, networkStock} {
			count, total := map[string]int{}, 0
			for _, r := range rows {
				if kind.of(r.spec) {
					count[r.on(network).State]++
					total++
				}
			}
			fmt.Fprintf(b, "| %s: %d | %s | %d | %d | %d | %d |\n", kind.name, total, title(network),
				count[statePassed], count[stateFailed], count[stateSkipped], count[stateAbsent])
		}
	}
}

func (r row) on(network string) outcome {
	if network == networkBraid {
		return r.braid
	}
	return r.stock
}

// decided says, by spec, why Braid fails one on purpose, and where it passes.
var decided = map[string]string{
	"Services should implement NodePort and HealthCheckNodePort correctly when ExternalTrafficPolicy changes": `A decision: a
  process of a node asks its own node port, and the pod is on another node. Over VXLAN the connection gets the address of the
  VXLAN device. With the node's own the pod's reply would go past the tunnel, with a pod's address as its source, which strict
  reverse-path filters and clouds drop. Without a tunnel the spec passes: "up --agent-setting 'direct-routing: true'".`,
}

func writeFailures(b *strings.Builder, rows []row) {
	b.WriteString("\n## Failed\n\n")
	any := false
	for _, r := range rows {
		for _, network := range []string{networkBraid, networkStock} {
			if o := r.on(network); o.State == stateFailed {
				any = true
				spec := strings.TrimPrefix(r.spec, specPrefix)
				fmt.Fprintf(b, "- %s, with %s: %s\n", cell(spec), title(network), cell(o.Why))
				if why := decided[spec]; why != "" && network == networkBraid {
					fmt.Fprintf(b, "\n  %s\n", why)
				}
			}
		}
	}
	if !any {
		b.WriteString("None.\n")
	}
}

// writeSkips lists skipped specs under their reasons.
func writeSkips(b *strings.Builder, rows []row) {
	b.WriteString("\n## Skipped, and why\n")
	type skip struct{ spec, networks string }
	by := map[string][]skip{}
	for _, r := range rows {
		both := r.braid.State == stateSkipped && r.stock.State == stateSkipped && r.braid.Why == r.stock.Why
		for _, network := range []string{networkBraid, networkStock} {
			o := r.on(network)
			switch {
			case o.State != stateSkipped:
			case !both:
				by[o.Why] = append(by[o.Why], skip{r.spec, ", with " + title(network) + " only"})
			case network == networkBraid:
				by[o.Why] = append(by[o.Why], skip{r.spec, ""})
			}
		}
	}
	for _, why := range slices.Sorted(maps.Keys(by)) {
		fmt.Fprintf(b, "\n%s:\n\n", cell(why))
		for _, s := range by[why] {
			fmt.Fprintf(b, "- %s%s\n", cell(strings.TrimPrefix(s.spec, specPrefix)), s.networks)
		}
	}
}

// cell makes text fit into one cell of a table, with nothing that markdown or a browser would take for its own.
func cell(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	return strings.NewReplacer("|", "\\|", "<", "&lt;", ">", "&gt;", "[", "\\[", "]", "\\]", "*", "\\*", "_", "\\_").Replace(s)
}
