package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// overlayFolder writes what docs/operations.md tells an administrator to keep: a kustomization with the API
// server's address, the DNS service's address and the images' tag. It returns the folder.
func (r *rig) overlayFolder(tag string) (string, error) {
	dir := r.o.path("kustomize")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	base, err := filepath.Rel(dir, filepath.Join(r.o.Root, "deploy/base"))
	if err != nil {
		return "", err
	}
	f := r.o.families()[0]
	text := fmt.Sprintf(`resources:
  - %s
images:
  - {name: docker.io/braidnet/netagent, newTag: %s}
  - {name: docker.io/braidnet/coredns, newTag: %s}
patches:
  - patch: |
      apiVersion: v1
      kind: ConfigMap
      metadata: {name: braid-api-server, namespace: kube-system}
      data: {host: %q, port: "%d"}
  - patch: |
      apiVersion: v1
      kind: Service
      metadata: {name: kube-dns, namespace: kube-system}
      spec: {clusterIP: %q}
`, base, tag, tag, f.control, apiPort, f.dns)
	return dir, os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o644)
}

// rollouts waits until both DaemonSets have what was applied last.
func (r *rig) rollouts() error {
	for _, name := range []string{"netagent", "coredns"} {
		if _, err := r.o.kubectl(r.ctx, "rollout", "status", "-n", system, "daemonset/"+name, "--timeout=180s"); err != nil {
			return err
		}
	}
	return nil
}

// uids are the pods of both DaemonSets, which change when anything about them does.
func (r *rig) uids() (string, error) {
	return r.o.kubectl(r.ctx, "get", "pods", "-n", system, "-l", "app.kubernetes.io/part-of=braid",
		"--sort-by=.metadata.uid", "-o", "jsonpath={.items[*].metadata.uid}")
}

// kept lists the Ready pods of both DaemonSets that are among the earlier ones.
func (r *rig) kept(uids string) (out []string, err error) {
	pods, err := r.api.pods(r.ctx, system, "app.kubernetes.io/part-of=braid")
	for _, p := range pods {
		if p.ready() && strings.Contains(uids, p.Metadata.UID) {
			out = append(out, p.Metadata.Name)
		}
	}
	return out, err
}

// faultApply applies the manifests in every way there is, again and again.
func faultApply(r *rig) error {
	before, err := r.uids()
	if err != nil {
		return err
	}
	if err := r.leftBehind(); err != nil {
		return err
	}
	for n := range 2 {
		err := r.o.install(r.ctx)
		r.verdict(err == nil, "server-side apply of deploy/braid.yaml, time %d: no conflict%s", n+2, because(err))
	}
	dir, err := r.overlayFolder("dev")
	if err != nil {
		return err
	}
	_, err = r.o.kubectl(r.ctx, "apply", "-k", dir)
	r.verdict(err == nil, "apply -k of a folder as in docs/operations.md%s", because(err))
	out, err := r.o.kubectl(r.ctx, "apply", "-k", dir)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	unchanged := strings.Count(out, " unchanged")
	r.verdict(err == nil && unchanged == len(lines) && unchanged > 10, "apply -k again: %d of %d objects unchanged%s", unchanged, len(lines), because(err))
	_, err = r.o.kubectl(r.ctx, "apply", "--server-side", "-k", dir)
	r.verdict(err == nil, "apply -k --server-side: no conflict%s", because(err))
	err = r.o.install(r.ctx)
	r.verdict(err == nil, "server-side apply of deploy/braid.yaml after that: no conflict%s", because(err))
	if err := r.rollouts(); err != nil {
		return err
	}
	after, err := r.uids()
	if err != nil {
		return err
	}
	r.verdict(before == after, "none of it started a pod anew")
	return r.judgeTraffic("manifests applied again")
}

// braidImage matches an image of ours in the manifests.
var braidImage = regexp.MustCompile(`docker\.io/braidnet/[a-z]+:[a-z]+`)

// faultUpgrade rolls both DaemonSets to images of another tag, and back, while traffic runs. The programs in
// them are the same: what is judged is the exchange.
func faultUpgrade(r *rig) error {
	const next = "next"
	manifest, err := os.ReadFile(r.o.Deploy)
	if err != nil {
		return err
	}
	err = r.o.everyNode(func(i int) error {
		for _, image := range braidImage.FindAllString(string(manifest), -1) {
			name, _, _ := strings.Cut(image, ":")
			if _, err := r.o.output(r.ctx, nodeName(i), true, nodeBin+"/ctr", "-n", "k8s.io", "images", "tag", "--force", image, name+":"+next); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	dir, err := r.overlayFolder(next)
	if err != nil {
		return err
	}
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"to the next tag with apply -k", func() error { _, err := r.o.kubectl(r.ctx, "apply", "-k", dir); return err }},
		{"back with server-side apply", func() error { return r.o.install(r.ctx, "--force-conflicts") }},
	} {
		old, err := r.uids()
		if err != nil {
			return err
		}
		if err := r.leftBehind(); err != nil {
			return err
		}
		begin := time.Now()
		if err := step.do(); err != nil {
			return err
		}
		if err := r.rollouts(); err != nil {
			return err
		}
		took := time.Since(begin)
		kept, err := r.kept(old)
		if err != nil {
			return err
		}
		r.verdict(len(kept) == 0, "%s: every pod was replaced; kept: %v", step.what, kept)
		if err := r.judgeTraffic(fmt.Sprintf("%s (%.0fs)", step.what, took.Seconds())); err != nil {
			return err
		}
	}
	return nil
}

// remove takes Braid away with the commands of docs/operations.md, "Removal", and waits until it is over.
func (r *rig) remove() error {
	deploy := filepath.Dir(r.o.Deploy)
	for _, args := range [][]string{
		{"delete", "--ignore-not-found", "-f", filepath.Join(deploy, "braid.yaml")},
		{"wait", "--for=delete", "pods", "-n", system, "-l", "app.kubernetes.io/part-of=braid", "--timeout=120s"},
		{"apply", "-f", filepath.Join(deploy, "remove.yaml")},
		{"rollout", "status", "-n", system, "daemonset/braid-remove", "--timeout=120s"},
		{"delete", "-f", filepath.Join(deploy, "remove.yaml")},
		{"wait", "--for=delete", "pods", "-n", system, "-l", "app.kubernetes.io/name=braid-remove", "--timeout=60s"},
	} {
		if _, err := r.o.kubectl(r.ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

// faultRemove removes Braid, looks for anything that is left, and installs it again.
func faultRemove(r *rig) error {
	if err := stopTraffic(r.ctx, r.o); err != nil { // its pods have to go first
		return err
	}
	begin := time.Now()
	err := r.remove()
	r.verdict(err == nil, "the commands of docs/operations.md, Removal, end well after %.0fs%s", time.Since(begin).Seconds(), because(err))
	for i := range r.o.Nodes {
		left, err := r.o.output(r.ctx, nodeName(i+1), true, "sh", "-c", leftScript)
		if err != nil {
			return err
		}
		lines := strings.Split(strings.TrimSpace(left), "\n")
		r.verdict(strings.TrimSpace(left) == "", "nothing is left on %s: %s", nodeName(i+1), few(lines))
	}
	begin = time.Now()
	if err := r.o.network(r.ctx, func(format string, a ...any) {
		r.note("installed again, %.1fs: %s", time.Since(begin).Seconds(), fmt.Sprintf(format, a...))
	}); err != nil {
		return err
	}
	return r.newTraffic()
}

// leftScript prints what a node has that one on which Braid never ran has not: tables, devices, routes, rules,
// neighbours, files, and parameters of the network other than those of a new network namespace. IP forwarding
// stays by intent, with what the kernel changes along with it, and so do the times of connection tracking. The
// kubelet has tables, and counters count.
const leftScript = `
nft list tables | grep -vE '^table (ip|ip6) (mangle|filter|nat)$' | sed 's/^/nftables: /'
nft list ruleset | grep -iE 'braid|brd' | sed 's/^/nftables: /'
iptables-save | grep -iE 'braid|brd|CNI-' | sed 's/^/iptables: /'
ls /sys/class/net | grep -vxE 'lo|eth0' | sed 's/^/device: /'
{ ip -o route show table all; ip -o -6 route show table all; } | grep -vE 'dev (lo|eth0)' | sed 's/^/route: /'
{ ip rule; ip -6 rule; } | grep -vE 'lookup (local|main|default)' | sed 's/^/rule: /'
ip -o neigh | grep -v 'dev eth0' | sed 's/^/neighbour: /'
find /etc/cni/net.d /opt/cni/bin /run/braid /var/lib/braid /var/lib/cni -type f -o -type s 2>/dev/null | sed 's/^/file: /'
sysctl -a 2>/dev/null | grep '^net' | sort >/tmp/here
unshare -n sysctl -a 2>/dev/null | grep '^net' | sort >/tmp/new
comm -23 /tmp/here /tmp/new | grep -vE 'forwarding|ip_forward|\.eth0\.|_count =|route_gc|flush|all.accept_redirects|conntrack_tcp_timeout_(close_wait|established)' | sed 's/^/sysctl: /'
rm -f /tmp/here /tmp/new
`
