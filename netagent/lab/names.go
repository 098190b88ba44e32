package lab

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
)

const (
	stateRoot = "/run/braid-lab"
	netnsRoot = "/run/netns"
	nsPrefix  = "braid-"
	// maxNS bounds a namespace's name so that it stays readable and every tool accepts it.
	maxNS = 80
)

// A lab's name has no dash, so that "braid-NAME-" is the prefix of that lab's namespaces and of no other's.
var labName = regexp.MustCompile(`^[a-z][a-z0-9]{0,15}$`)

func checkName(name string) error {
	if !labName.MatchString(name) {
		return fmt.Errorf("lab name %q: use 1 to 16 lower-case letters and digits, beginning with a letter", name)
	}
	return nil
}

// paths gives every file of one lab.
type paths struct{ name string }

func (p paths) dir() string       { return filepath.Join(stateRoot, p.name) }
func (p paths) options() string   { return filepath.Join(p.dir(), "lab.json") }
func (p paths) cluster() string   { return filepath.Join(p.dir(), "cluster") }
func (p paths) manifests() string { return filepath.Join(p.dir(), "manifests") }
func (p paths) logs() string      { return filepath.Join(p.dir(), "logs") }
func (p paths) daemonLog() string { return filepath.Join(p.logs(), "daemon.log") }
func (p paths) daemonPID() string { return filepath.Join(p.dir(), "daemon.pid") }
func (p paths) socket() string    { return filepath.Join(p.dir(), "daemon.sock") }
func (p paths) resolv() string    { return filepath.Join(p.dir(), "outside-resolv.conf") }
func (p paths) corefile() string  { return filepath.Join(p.dir(), "Corefile") }
func (p paths) agentYAML() string { return filepath.Join(p.dir(), "netagent.yaml") }
func (p paths) nsswitch() string  { return filepath.Join(p.dir(), "nsswitch.conf") }

// node is the folder of one node's files: run, state, cni.
func (p paths) node(node, what string) string { return filepath.Join(p.dir(), "nodes", node, what) }

// log is the log file of one program of one node.
func (p paths) log(node, program string) string {
	return filepath.Join(p.logs(), node+"-"+program+".log")
}

// pod is the folder of one pod: its resolv.conf, hosts and sandbox.json.
func (p paths) pod(namespace, name string) string {
	return p.podDir(podKey(namespace, name))
}

func (p paths) podDir(key string) string { return filepath.Join(p.dir(), "pods", key) }

// podKey is unambiguous, because the name of a Kubernetes namespace has no dot.
func podKey(namespace, name string) string { return shorten(namespace + "." + name) }

// outsideNS is the namespace of the underlay, which also plays the outside world.
func (p paths) outsideNS() string { return nsPrefix + p.name + "-net" }

func (p paths) nodeNS(node string) string { return nsPrefix + p.name + "-" + node }

func (p paths) podNS(namespace, name string) string {
	return nsPrefix + p.name + "-" + podKey(namespace, name)
}

// nsPath is the handle of a named network namespace.
func nsPath(name string) string { return filepath.Join(netnsRoot, name) }

// shorten keeps a long name recognisable and unique: its head and a hash of the whole.
func shorten(s string) string {
	const head = maxNS - len(nsPrefix) - 17 - 9
	if len(s) <= head+9 {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	return s[:head] + "-" + hex.EncodeToString(sum[:4])
}

// namespaces lists the names of the lab's network namespace handles, sorted.
func (p paths) namespaces() ([]string, error) {
	all, err := namespaceHandles()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, n := range all {
		if strings.HasPrefix(n, nsPrefix+p.name+"-") {
			out = append(out, n)
		}
	}
	return out, nil
}

func namespaceHandles() ([]string, error) {
	entries, err := os.ReadDir(netnsRoot)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out, nil
}

// labs lists the labs that left anything: a folder, or an underlay namespace without one.
func labs() ([]string, error) {
	seen := map[string]bool{}
	entries, err := os.ReadDir(stateRoot)
	if err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("list labs: %w", err)
	}
	for _, e := range entries {
		seen[e.Name()] = labName.MatchString(e.Name())
	}
	handles, err := namespaceHandles()
	if err != nil {
		return nil, err
	}
	for _, h := range handles {
		rest, ours := strings.CutPrefix(h, nsPrefix)
		name, what, _ := strings.Cut(rest, "-")
		if ours && what == "net" && labName.MatchString(name) {
			seen[name] = true
		}
	}
	var out []string
	for name, ok := range seen {
		if ok {
			out = append(out, name)
		}
	}
	sort.Strings(out)
	return out, nil
}
