{{/* Seconds of a duration as Shunter writes them: 90s, 10m, 1h30m, 1d. */}}
{{- define "shunter-agent.seconds" -}}
{{- $seconds := 0 -}}
{{- range regexFindAll "[0-9]+[dhms]" . -1 -}}
{{- $unit := get (dict "d" 86400 "h" 3600 "m" 60 "s" 1) (regexFind "[dhms]" .) -}}
{{- $seconds = add $seconds (mul (regexFind "[0-9]+" .) $unit) -}}
{{- end -}}
{{- $seconds -}}
{{- end -}}

{{/* How long agents wait for their runs when they are told to stop: those of kubernetes pools hand them over at once. */}}
{{- define "shunter-agent.drainGrace" -}}
{{- default (ternary "0s" "10m" (eq .Values.poolType "kubernetes")) .Values.drainGrace -}}
{{- end -}}

{{/* How long a pod may take to go: agents of kubernetes pools hand their Jobs over, others wait for their runs. */}}
{{- define "shunter-agent.terminationGracePeriodSeconds" -}}
{{- if not (kindIs "invalid" .Values.terminationGracePeriodSeconds) -}}
{{- int .Values.terminationGracePeriodSeconds -}}
{{- else if eq .Values.poolType "process" -}}
{{- add (include "shunter-agent.seconds" (include "shunter-agent.drainGrace" .)) 30 -}}
{{- else -}}
60
{{- end -}}
{{- end -}}
