package deploy

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

// A box runs containers of the manifests from the real images the way a runtime does: a root file
// system of the image's files, read-only; the volumes; /proc/sys read-only; the user, and no
// capability but those granted. What the kernel refuses here it refuses in a cluster. Seccomp and
// security modules are the two things a box leaves out.
type box struct {
	ns      *nstest.NS // the network namespace: of the node for hostNetwork, else of the pod
	host    string     // folder that stands for the node's file system
	objects []object
	env     map[string]string // what the kubelet adds
	extra   []mount           // what the kubelet mounts

	configs map[string][]string // folders that stand for a ConfigMap
}

type mount struct {
	From, To string
	ReadOnly bool
}

// boxed is what the process that becomes the container is told.
type boxed struct {
	Root     string
	Mounts   []mount
	UID      int
	GID      int
	Caps     []string
	Argv     []string
	Env      []string
	NoNewPri bool
}

const boxEnv = "BRAID_TEST_BOX"

func TestMain(m *testing.M) {
	if spec := os.Getenv(boxEnv); spec != "" {
		fmt.Fprintln(os.Stderr, "box:", enterBox(spec))
		os.Exit(125)
	}
	code := m.Run()
	for _, dir := range unpacked {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// command returns a container of a DaemonSet, ready to start with b.ns.Start.
func (b *box) command(t *testing.T, p *corev1.PodSpec, name string, args ...string) *exec.Cmd {
	t.Helper()
	all := containers(p)
	i := slices.IndexFunc(all, func(c corev1.Container) bool { return c.Name == name })
	if i < 0 {
		t.Fatalf("no container %s", name)
	}
	c := all[i]
	img := imageOf(t, c.Image)
	spec := boxed{Root: img.root, NoNewPri: !*c.SecurityContext.AllowPrivilegeEscalation,
		Env: img.config.Env, Argv: c.Command}
	if len(spec.Argv) == 0 {
		spec.Argv = img.config.Entrypoint
	}
	spec.Argv = append(slices.Clone(spec.Argv), c.Args...)
	if len(args) > 0 { // as `kubectl exec` does
		spec.Argv = args
	}
	env := maps.Clone(b.env)
	for _, e := range c.Env {
		if value, ok := b.value(t, e); ok {
			env[e.Name] = value // in the place of the kubelet's own
		}
	}
	for k, v := range env {
		spec.Env = append(spec.Env, k+"="+v)
	}
	uid, gid := p.SecurityContext.RunAsUser, p.SecurityContext.RunAsGroup
	spec.UID = int(*cmp.Or(c.SecurityContext.RunAsUser, uid))
	spec.GID = int(*cmp.Or(c.SecurityContext.RunAsGroup, gid))
	for _, a := range c.SecurityContext.Capabilities.Add {
		spec.Caps = append(spec.Caps, string(a))
	}
	for _, m := range c.VolumeMounts {
		j := slices.IndexFunc(p.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
		spec.Mounts = append(spec.Mounts, mount{From: b.volume(t, p.Volumes[j]), To: m.MountPath, ReadOnly: m.ReadOnly})
	}
	spec.Mounts = append(spec.Mounts, b.extra...)
	for _, dir := range []string{"proc", "dev", "sys"} {
		if err := os.MkdirAll(filepath.Join(spec.Root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range spec.Mounts {
		mountPoint(t, spec.Root, m)
	}
	data, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{boxEnv + "=" + string(data)}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	return cmd
}

func mountPoint(t *testing.T, root string, m mount) {
	t.Helper()
	at := filepath.Join(root, m.To)
	info, err := os.Stat(m.From)
	if err == nil && info.IsDir() {
		err = os.MkdirAll(at, 0o755)
	} else if err == nil {
		err = errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, nil, 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// value resolves a variable as the kubelet does.
func (b *box) value(t *testing.T, e corev1.EnvVar) (string, bool) {
	t.Helper()
	switch from := e.ValueFrom; {
	case from == nil:
		return e.Value, true
	case from.FieldRef != nil && from.FieldRef.FieldPath == "spec.nodeName":
		return "n1", true
	case from.ConfigMapKeyRef != nil:
		value, ok := find[corev1.ConfigMap](t, b.objects, from.ConfigMapKeyRef.Name).Data[from.ConfigMapKeyRef.Key]
		return value, ok
	}
	t.Fatalf("variable %s: this box cannot resolve %+v", e.Name, e.ValueFrom)
	return "", false
}

// volume returns the folder on this machine that stands for a volume.
func (b *box) volume(t *testing.T, v corev1.Volume) string {
	t.Helper()
	switch {
	case v.HostPath != nil && v.HostPath.Path == "/proc/sys/net":
		return v.HostPath.Path // shows the network namespace of whoever opens it
	case v.HostPath != nil && *v.HostPath.Type == corev1.HostPathCharDev:
		return v.HostPath.Path // what it makes is in the network namespace of whoever opens it
	case v.HostPath != nil && *v.HostPath.Type == corev1.HostPathFileOrCreate:
		file := filepath.Join(b.host, v.HostPath.Path)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(file, os.O_CREATE, 0o644)
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		return file
	case v.HostPath != nil:
		dir := filepath.Join(b.host, v.HostPath.Path)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		return dir
	case v.ConfigMap != nil:
		dir := t.TempDir()
		b.configs[v.ConfigMap.Name] = append(b.configs[v.ConfigMap.Name], dir)
		b.project(t, v.ConfigMap.Name)
		openTo(t, dir)
		return dir
	}
	t.Fatalf("volume %s: this box cannot make %+v", v.Name, v)
	return ""
}

// project brings the contents of a ConfigMap into all folders that stand for it, as the kubelet does: the files
// are links through one link to a folder, and that one is replaced, so that all change in one moment.
func (b *box) project(t *testing.T, name string) {
	t.Helper()
	for _, dir := range b.configs[name] {
		version, err := os.MkdirTemp(dir, "..version-")
		if err == nil {
			err = errors.Join(os.Chmod(version, 0o755), os.Symlink(filepath.Base(version), filepath.Join(dir, "..data_tmp")))
		}
		for key, content := range find[corev1.ConfigMap](t, b.objects, name).Data {
			err = errors.Join(err, os.WriteFile(filepath.Join(version, key), []byte(content), 0o644))
			if link := filepath.Join(dir, key); !exists(link) {
				err = errors.Join(err, os.Symlink(filepath.Join("..data", key), link))
			}
		}
		if err = errors.Join(err, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data"))); err != nil {
			t.Fatal(err)
		}
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// openTo lets a user other than root reach a folder of the test.
func openTo(t *testing.T, dir string) {
	t.Helper()
	for ; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// enterBox turns this process into the container; it returns only when that fails.
func enterBox(encoded string) error {
	var s boxed
	if err := json.Unmarshal([]byte(encoded), &s); err != nil {
		return err
	}
	runtime.LockOSThread() // capabilities belong to a thread
	if err := boxMounts(s); err != nil {
		return err
	}
	if err := errors.Join(unix.Chroot(s.Root), unix.Chdir("/")); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	if err := boxRights(s); err != nil {
		return err
	}
	path := s.Argv[0]
	if !strings.Contains(path, "/") {
		for _, e := range s.Env {
			if list, ok := strings.CutPrefix(e, "PATH="); ok {
				for _, dir := range filepath.SplitList(list) {
					if _, err := os.Stat(filepath.Join(dir, s.Argv[0])); err == nil {
						path = filepath.Join(dir, s.Argv[0])
						break
					}
				}
			}
		}
	}
	return fmt.Errorf("exec %s: %w", path, unix.Exec(path, s.Argv, s.Env))
}

func boxMounts(s boxed) error {
	bind := func(from, to string, readOnly bool) error {
		if err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind %s to %s: %w", from, to, err)
		}
		if !readOnly {
			return nil
		}
		if err := unix.Mount("", to, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("make %s read-only: %w", to, err)
		}
		return nil
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	proc := filepath.Join(s.Root, "proc")
	list := []mount{{From: s.Root, To: "", ReadOnly: true}, {From: "/proc", To: "proc"}, {From: "/dev", To: "dev"}}
	for _, m := range append(list, s.Mounts...) {
		if err := bind(m.From, filepath.Join(s.Root, m.To), m.ReadOnly); err != nil {
			return err
		}
	}
	return bind(filepath.Join(proc, "sys"), filepath.Join(proc, "sys"), true)
}

// capabilities are those that the manifests grant, by their numbers.
var capabilities = map[string]uint{"NET_ADMIN": unix.CAP_NET_ADMIN, "NET_RAW": unix.CAP_NET_RAW, "NET_BIND_SERVICE": unix.CAP_NET_BIND_SERVICE}

func boxRights(s boxed) error {
	var keep uint64
	for _, name := range s.Caps {
		number, known := capabilities[name]
		if !known {
			return fmt.Errorf("capability %s is not known here", name)
		}
		keep |= 1 << number
	}
	for c := uint(0); c <= unix.CAP_LAST_CAP; c++ {
		if keep&(1<<c) == 0 {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
				return fmt.Errorf("drop capability %d: %w", c, err)
			}
		}
	}
	if err := errors.Join(unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0), syscall.Setgroups(nil),
		unix.Setresgid(s.GID, s.GID, s.GID), unix.Setresuid(s.UID, s.UID, s.UID)); err != nil {
		return fmt.Errorf("become user %d: %w", s.UID, err)
	}
	set := [2]unix.CapUserData{
		{Effective: uint32(keep), Permitted: uint32(keep)}, {Effective: uint32(keep >> 32), Permitted: uint32(keep >> 32)}}
	if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &set[0]); err != nil {
		return fmt.Errorf("set capabilities: %w", err)
	}
	if s.NoNewPri {
		return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
	return nil
}

// output collects what a container writes, for the error of a test.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}
