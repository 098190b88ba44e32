package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
)

// sandbox is what the lab knows of one pod's namespaces; it is kept in the pod's folder so that
// `exec` works without the daemon.
type sandbox struct {
	Namespace string       `json:"namespace"`
	Name      string       `json:"name"`
	Node      string       `json:"node"`
	NetNS     string       `json:"netns"` // path of the handle
	Hostname  string       `json:"hostname"`
	IPs       []netip.Addr `json:"ips"`
}

func (s *sandbox) save(dir string) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, "sandbox.json"), data)
}

func loadSandbox(dir string) (*sandbox, error) {
	data, err := os.ReadFile(filepath.Join(dir, "sandbox.json"))
	if err != nil {
		return nil, err
	}
	var s sandbox
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return &s, nil
}

// execIn becomes argv inside a target: a pod, "node/nI" or "outside". It returns only on failure.
func execIn(lab, namespace, target string, argv []string) error {
	o, err := loadOptions(lab)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("lab exec needs root: run it with sudo")
	}
	e, err := o.entryOf(namespace, target)
	if err != nil {
		return fmt.Errorf("lab %s: %w", lab, err)
	}
	// The programs of the lab come first, so that `netagent status` on a node is that of the lab.
	if err := extendPath(o.BinDir); err != nil {
		return err
	}
	e.argv, e.env = argv, append(os.Environ(), e.env...)
	return e.enter()
}

// extendPath puts folders before those of $PATH, and behind them the folders of administration tools,
// which a plain `su` leaves out on Debian.
func extendPath(first ...string) error {
	dirs := append(first, filepath.SplitList(os.Getenv("PATH"))...)
	for _, sbin := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if !slices.Contains(dirs, sbin) {
			dirs = append(dirs, sbin)
		}
	}
	return os.Setenv("PATH", strings.Join(dirs, string(os.PathListSeparator)))
}

// podTarget reads how a person names a pod: POD, pod/POD, NAMESPACE/POD or pod/NAMESPACE/POD.
func podTarget(namespace, target string) (ns, name string) {
	target = strings.TrimPrefix(target, "pod/")
	if before, after, ok := strings.Cut(target, "/"); ok {
		return before, after
	}
	return namespace, target
}

// entryOf finds a target's namespaces and files.
func (o *Options) entryOf(namespace, target string) (*entry, error) {
	p := o.paths()
	kind, rest, slash := strings.Cut(target, "/")
	switch {
	case target == "outside":
		return &entry{netns: nsPath(p.outsideNS()), hostname: "outside", binds: p.etc(p.resolv(), "")}, nil
	case slash && kind == "node":
		for _, n := range o.nodes() {
			if n.name == rest { // `netagent status` on a node asks that node's agent
				return &entry{netns: nsPath(p.nodeNS(rest)), hostname: rest, binds: p.etc(p.resolv(), ""),
					env: []string{"BRAID_RUN_DIR=" + p.node(rest, "run")}}, nil
			}
		}
		return nil, fmt.Errorf("no node %q: it has n1 to n%d", rest, o.Nodes)
	}
	namespace, target = podTarget(namespace, target)
	dir := p.pod(namespace, target)
	s, err := loadSandbox(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("no pod %s in namespace %s runs here; there are: %s", target, namespace, o.podNames())
	}
	if err != nil {
		return nil, err
	}
	return &entry{netns: s.NetNS, hostname: s.Hostname, binds: p.etc(filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "hosts"))}, nil
}

// podNames lists the running pods for a message.
func (o *Options) podNames() string {
	dirs, _ := filepath.Glob(filepath.Join(o.paths().dir(), "pods", "*"))
	var names []string
	for _, d := range dirs {
		if s, err := loadSandbox(d); err == nil {
			names = append(names, s.Namespace+"/"+s.Name)
		}
	}
	if len(names) == 0 {
		return "none"
	}
	sort.Strings(names)
	const most = 12
	if len(names) > most {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", len(names)-most)
	}
	return strings.Join(names, ", ")
}
