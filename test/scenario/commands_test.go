package scenario

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// commands are the words that the scripts know beyond testscript's own.
var commands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"lab":       cmdLab,
	"load":      cmdLoad,
	"unharmed":  cmdUnharmed,
	"repaired":  cmdRepaired,
	"check":     cmdCheck,
	"reachable": cmdReachable,
	"rules":     cmdRules,
	"cuts":      cmdCuts,
	"resumes":   cmdResumes,
	"race":      cmdRace,
	"crowd":     cmdCrowd,
	"uncrowd":   cmdUncrowd,
	"leaks":     cmdLeaks,
	"fill":      cmdFill,
	"restart":   cmdRestart,
	"until":     cmdUntil,
	"traces":    cmdTraces,
	"flow":      cmdFlow,
	"flowok":    cmdFlowOK,
}

// deadline bounds every wait for a condition; it is generous because machines are slow, and no
// figure is drawn from it.
const deadline = 60 * time.Second

// cmdLab runs `netagent lab VERB --name $LAB ARGS…`.
func cmdLab(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) == 0 {
		ts.Fatalf("usage: lab VERB [ARG…]")
	}
	err := ts.Exec("netagent", append([]string{"lab", args[0], "--name", ts.Getenv("LAB")}, args[1:]...)...)
	if neg && err == nil {
		ts.Fatalf("lab %s succeeded, and should have failed", strings.Join(args, " "))
	}
	if !neg && err != nil {
		ts.Fatalf("lab %s: %v", strings.Join(args, " "), err)
	}
}

// cmdUntil repeats `until REGEXP COMMAND…` until its output matches; with `!` until it does not.
func cmdUntil(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: until REGEXP COMMAND [ARG…]")
	}
	want, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	argv := args[1:]
	if argv[0] == "lab" {
		argv = append([]string{"netagent", "lab", argv[1], "--name", ts.Getenv("LAB")}, argv[2:]...)
	}
	var out []byte
	for end := time.Now().Add(deadline); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		c := exec.Command(lookPath(ts, argv[0]), argv[1:]...)
		c.Env = append(os.Environ(), "PATH="+ts.Getenv("PATH"))
		c.Dir = ts.MkAbs(".")
		out, _ = c.CombinedOutput()
		if want.Match(out) != neg {
			return
		}
	}
	ts.Fatalf("after %s %q still %s %s:\n%s", deadline, strings.Join(argv, " "), map[bool]string{true: "matches", false: "does not match"}[neg], want, out)
}

func lookPath(ts *testscript.TestScript, name string) string {
	for _, d := range filepath.SplitList(ts.Getenv("PATH")) {
		if p := filepath.Join(d, name); isExecutable(p) {
			return p
		}
	}
	ts.Fatalf("%s is not in $PATH", name)
	return ""
}

func isExecutable(p string) bool {
	info, err := os.Stat(p)
	return err == nil && info.Mode()&0o111 != 0
}

// cmdTraces fails when anything of the script's playground is left (with `!`: when nothing is).
func cmdTraces(ts *testscript.TestScript, neg bool, _ []string) {
	left := traces(ts.Getenv("LAB"))
	if neg == (len(left) == 0) {
		ts.Fatalf("traces of the playground: %v", left)
	}
}

// traces lists namespaces, folders, mounts and processes of a playground. Every one of its
// processes has its name in an argument or its folder in the environment.
func traces(lab string) (left []string) {
	for _, pattern := range []string{"/run/netns/braid-" + lab + "-*", "/run/braid-lab/" + lab, "/etc/netns/braid-" + lab + "-*"} {
		found, _ := filepath.Glob(pattern)
		left = append(left, found...)
	}
	if mounts, err := os.ReadFile("/proc/self/mounts"); err == nil {
		for _, m := range strings.Split(string(mounts), "\n") {
			if strings.Contains(m, "braid-"+lab+"-") || strings.Contains(m, "braid-lab/"+lab+"/") {
				left = append(left, "mount "+m)
			}
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		cmdline, _ := os.ReadFile(p)
		environ, _ := os.ReadFile(filepath.Join(filepath.Dir(p), "environ"))
		text := strings.ReplaceAll(string(cmdline), "\x00", " ")
		if strings.Contains(text, "--name "+lab+" ") || strings.Contains(text, "braid-lab/"+lab+"/") || strings.Contains(string(environ), "braid-lab/"+lab+"/") {
			left = append(left, "process "+filepath.Base(filepath.Dir(p))+" "+text)
		}
	}
	return left
}

// tearDown removes a script's playground and fails the test when that leaves anything.
func tearDown(t *testing.T, dir, lab string) {
	if t.Failed() {
		logs, _ := filepath.Glob("/run/braid-lab/" + lab + "/logs/*")
		for _, l := range logs {
			out, _ := exec.Command("tail", "-n", "25", l).CombinedOutput()
			t.Logf("%s:\n%s", l, out)
		}
	}
	if out, err := exec.Command(filepath.Join(dir, "netagent"), "lab", "down", "--name", lab).CombinedOutput(); err != nil {
		t.Errorf("lab down: %v\n%s", err, out)
	}
	if left := traces(lab); len(left) > 0 {
		t.Errorf("lab down left %v", left)
	}
}

// flows are the streams of connections that scripts opened, by name of the playground. Scripts run
// in parallel.
var flows sync.Map

var flowNumber atomic.Int64 // tells the files of a script's flows apart

// flow opens one connection after the other until it is told to stop, and counts failures.
type flow struct {
	cmd *exec.Cmd
	log string
}

// cmdFlow starts `flow TARGET URL [SECONDS]`: new HTTP connections to URL from TARGET, one after the other,
// until flowok, each of which may take so long (5). It returns once the first succeeded.
func cmdFlow(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) == 2 {
		args = append(args, "5")
	}
	if neg || len(args) != 3 {
		ts.Fatalf("usage: flow TARGET URL [SECONDS]")
	}
	f := &flow{log: ts.MkAbs(fmt.Sprintf("flow%d.log", flowNumber.Add(1)))}
	script := fmt.Sprintf(`while [ ! -e %[2]s.stop ]; do if curl -sS --max-time %[3]s -o /dev/null %[1]s 2>>%[2]s.err; then echo ok; else echo failed; fi >>%[2]s; done`, args[1], f.log, args[2])
	f.cmd = exec.Command(lookPath(ts, "netagent"), "lab", "exec", "--name", ts.Getenv("LAB"), args[0], "--", "sh", "-c", script)
	ts.Check(f.cmd.Start())
	if _, running := flows.LoadOrStore(ts.Getenv("LAB"), f); running {
		ts.Fatalf("flow: one at a time")
	}
	ts.Defer(func() { _ = f.stop() })
	f.wait(ts, 20)
}

// cmdFlowOK ends the flow after more connections have been made and fails if any had failed.
func cmdFlowOK(ts *testscript.TestScript, neg bool, _ []string) {
	v, running := flows.LoadAndDelete(ts.Getenv("LAB"))
	if neg || !running {
		ts.Fatalf("flowok: no flow was started")
	}
	f := v.(*flow)
	f.wait(ts, f.count("ok")+20)
	ts.Check(f.stop())
	ok, failed := f.count("ok"), f.count("failed")
	ts.Logf("%d connections, %d failed", ok+failed, failed)
	if failed > 0 {
		errs, _ := os.ReadFile(f.log + ".err")
		ts.Fatalf("%d of %d connections failed:\n%s", failed, ok+failed, errs)
	}
}

func (f *flow) count(word string) int {
	data, _ := os.ReadFile(f.log)
	return strings.Count(string(data), word)
}

// wait returns when the flow has made n connections that succeeded.
func (f *flow) wait(ts *testscript.TestScript, n int) {
	for end := time.Now().Add(deadline); f.count("ok") < n; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			errs, _ := os.ReadFile(f.log + ".err")
			ts.Fatalf("only %d connections succeeded in %s, %d failed:\n%s", f.count("ok"), deadline, f.count("failed"), errs)
		}
	}
}

func (f *flow) stop() error {
	if err := os.WriteFile(f.log+".stop", nil, 0o600); err != nil {
		return err
	}
	_ = f.cmd.Wait()
	return nil
}
